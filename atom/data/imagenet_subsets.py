"""Ten classes of ImageNet by the name of their subset, from any folder in ImageNet's layout.

The subsets are those of MTT (Cazenavette et al., CVPR 2022), in the order of its code; nette and woof are Howard's
(fastai). Class directories are called by WordNet identifiers, as ImageNet publishes them; classes are called by the
first of their names.
"""

from dataclasses import replace

from atom.data import official
from atom.data.image_set import RealData, SourceInfo
from atom.data.imagenet import read_layout
from atom.data.request import Request

IMAGE_SIZE = 128
"""Side in pixels unless the user says another. Source: MTT, the shorter side to 128, then the centre."""

SUBSETS: dict[str, dict[str, str]] = {
    "imagenette": {
        "n01440764": "tench",
        "n02102040": "English springer",
        "n02979186": "cassette player",
        "n03000684": "chain saw",
        "n03028079": "church",
        "n03394916": "French horn",
        "n03417042": "garbage truck",
        "n03425413": "gas pump",
        "n03445777": "golf ball",
        "n03888257": "parachute",
    },
    "imagewoof": {
        "n02096294": "Australian terrier",
        "n02093754": "Border terrier",
        "n02111889": "Samoyed",
        "n02088364": "beagle",
        "n02086240": "Shih-Tzu",
        "n02089973": "English foxhound",
        "n02087394": "Rhodesian ridgeback",
        "n02115641": "dingo",
        "n02099601": "golden retriever",
        "n02105641": "Old English sheepdog",
    },
    "imagefruit": {
        "n07753275": "pineapple",
        "n07753592": "banana",
        "n07745940": "strawberry",
        "n07747607": "orange",
        "n07749582": "lemon",
        "n07768694": "pomegranate",
        "n07753113": "fig",
        "n07720875": "bell pepper",
        "n07718472": "cucumber",
        "n07742313": "Granny Smith",
    },
    "imagemeow": {
        "n02123045": "tabby",
        "n02123159": "tiger cat",
        "n02123394": "Persian cat",
        "n02123597": "Siamese cat",
        "n02124075": "Egyptian cat",
        "n02129165": "lion",
        "n02129604": "tiger",
        "n02128925": "jaguar",
        "n02128757": "snow leopard",
        "n02127052": "lynx",
    },
    "imagesquawk": {
        "n01806143": "peacock",
        "n02007558": "flamingo",
        "n01818515": "macaw",
        "n02051845": "pelican",
        "n02056570": "king penguin",
        "n01614925": "bald eagle",
        "n01843383": "toucan",
        "n01518878": "ostrich",
        "n01860187": "black swan",
        "n01819313": "sulphur-crested cockatoo",
    },
    "imageyellow": {
        "n02206856": "bee",
        "n12057211": "yellow lady's slipper",
        "n07753592": "banana",
        "n07749582": "lemon",
        "n12144580": "corn",
        "n04146614": "school bus",
        "n03530642": "honeycomb",
        "n02129165": "lion",
        "n01773157": "black and gold garden spider",
        "n01531178": "goldfinch",
    },
}
"""Class directories and names by subset. Source of the classes: MTT's code, by ImageNet's class numbers, 0 217 482 ...
for imagenette; of their identifiers and names: the list of ImageNet's 1000 classes, looked up for every number."""

_VALIDATION = 50
"""Validation images of a class of ImageNet."""


def read_imagenet_subset(request: Request) -> RealData:
    """The ten classes of a subset, out of a copy of ImageNet; other classes may lie beside them.

    Raises:
        DataError: a class directory is missing, an image is broken, or see `read_layout`.
    """
    chosen, title = SUBSETS[request.name], f"Image{request.name.removeprefix('image').capitalize()}"
    source = SourceInfo(
        title=f"{title} (ten classes of ImageNet)",
        citation=(
            "O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV, 2015; the choice of"
            " classes: G. Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR, 2022."
        ),
        licence="No licence of its own; ImageNet's terms ask for non-commercial research or educational use.",
        homepage="https://www.image-net.org",
    )
    sized = replace(request, image_size=request.image_size or IMAGE_SIZE)
    data = read_layout(sized, request.name, source, chosen=chosen)
    # How many training images a class has was not looked up; another split shows in the part that judges.
    own = official.Part(tuple(data.train.per_class_counts().tolist()))
    return official.compared(data, (own, official.Part((_VALIDATION,) * len(chosen))))
