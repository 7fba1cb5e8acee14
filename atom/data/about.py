"""Who made the well-known image sets, under which terms, and what their classes are called."""

from atom.data.image_set import SourceInfo

CIFAR_CITATION = "Alex Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009."
NONE_STATED = "The authors state no licence and ask to be cited."

DIGITS = SourceInfo(
    title="Optical Recognition of Handwritten Digits (test part, as shipped with scikit-learn)",
    citation="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Repository, 1998.",
    licence="CC BY 4.0 (UCI Machine Learning Repository)",
    homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
)
CIFAR10 = SourceInfo("CIFAR-10", CIFAR_CITATION, NONE_STATED, "https://www.cs.toronto.edu/~kriz/cifar.html")
CIFAR100 = SourceInfo("CIFAR-100", CIFAR_CITATION, NONE_STATED, "https://www.cs.toronto.edu/~kriz/cifar.html")
MNIST = SourceInfo(
    title="MNIST",
    citation="Y. LeCun et al., Gradient-based learning applied to document recognition, 1998.",
    licence="CC BY-SA 3.0, as TensorFlow's and Keras' documentation states it.",
    homepage="http://yann.lecun.com/exdb/mnist/",
)
FASHIONMNIST = SourceInfo(
    title="Fashion-MNIST",
    citation=(
        "H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking "
        "Machine Learning Algorithms, arXiv:1708.07747, 2017."
    ),
    licence="MIT",
    homepage="https://github.com/zalandoresearch/fashion-mnist",
)
SVHN = SourceInfo(
    title="SVHN (cropped digits)",
    citation=(
        "Y. Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, "
        "NIPS workshop, 2011."
    ),
    licence="For non-commercial use only.",
    homepage="http://ufldl.stanford.edu/housenumbers/",
)
TINYIMAGENET = SourceInfo(
    title="Tiny ImageNet",
    citation="Y. Le and X. Yang, Tiny ImageNet Visual Recognition Challenge, CS 231N, Stanford, 2015.",
    licence="No licence of its own; ImageNet's terms ask for non-commercial research or educational use.",
    homepage="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
)
IMAGENET = SourceInfo(
    title="ImageNet (ILSVRC 2012)",
    citation="O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV, 2015.",
    licence="No licence of its own; ImageNet's terms ask for non-commercial research or educational use.",
    homepage="https://www.image-net.org",
)

DIGIT_NAMES = tuple("0123456789")
FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def unknown_source(name: str, layout: str) -> SourceInfo:
    """What can be said of a user's own files: only their name and layout."""
    return SourceInfo(
        title=f"{name} ({layout})",
        citation="Unknown: the files do not say.",
        licence="Unknown: ask whoever provided the images.",
        homepage="",
    )
