"""What has a net learned, and why does it say what it says? The papers' figures: functions that return arrays."""

from convnet.look.classes import classes as classes
from convnet.look.deconv import deconv as deconv
from convnet.look.duplicates import near_duplicates as near_duplicates
from convnet.look.fields import fields as fields
from convnet.look.guesses import guesses as guesses
from convnet.look.maps import maps as maps
from convnet.look.neighbours import neighbours as neighbours
from convnet.look.panels import panels as panels
from convnet.look.strongest import strongest as strongest
