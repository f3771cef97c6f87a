"""What has a net learned, and why does it say what it says? The papers' figures: functions that return arrays."""

from convnet.visualize.cam import cam as cam
from convnet.visualize.classes import classes as classes
from convnet.visualize.curves import curves as curves
from convnet.visualize.deconv import Unit as Unit
from convnet.visualize.deconv import deconv as deconv
from convnet.visualize.duplicates import near_duplicates as near_duplicates
from convnet.visualize.filters import filters as filters
from convnet.visualize.maps import maps as maps
from convnet.visualize.neighbours import neighbours as neighbours
from convnet.visualize.occlusion import occlusion as occlusion
from convnet.visualize.panels import panels as panels
from convnet.visualize.project import over_training as over_training
from convnet.visualize.project import project as project
from convnet.visualize.project import project_picture as project_picture
from convnet.visualize.receptive_fields import receptive_fields as receptive_fields
from convnet.visualize.specialisation import specialisation as specialisation
from convnet.visualize.top_activations import top_activations as top_activations
