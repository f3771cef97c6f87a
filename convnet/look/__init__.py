"""What has a net learned, and why does it say what it says? The papers' figures: functions that return arrays."""

from convnet.look.cam import cam as cam
from convnet.look.classes import classes as classes
from convnet.look.curves import curves as curves
from convnet.look.deconv import Unit as Unit
from convnet.look.deconv import deconv as deconv
from convnet.look.duplicates import near_duplicates as near_duplicates
from convnet.look.fields import fields as fields
from convnet.look.filters import filters as filters
from convnet.look.guesses import guesses as guesses
from convnet.look.maps import maps as maps
from convnet.look.neighbours import neighbours as neighbours
from convnet.look.occlusion import occlusion as occlusion
from convnet.look.panels import panels as panels
from convnet.look.project import over_training as over_training
from convnet.look.project import project as project
from convnet.look.project import project_picture as project_picture
from convnet.look.specialisation import specialisation as specialisation
from convnet.look.strongest import strongest as strongest
