"""What a learner is asked for: how it is trained on one step after another."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from atom.settings import DeviceKind, Settings, parse_dsa_strategy, settle_dsa_strategy

STEP_IMAGES_SHOWN, JOINT_IMAGES_SHOWN = 12_800, 250_000
"""Images that a default training shows at least, repeats counted. Chosen, measured on digits (5 steps, 10 images of a
class remembered, convnet-w32, one run each): er came to 20 % with 10 epochs of a step's 290 images and to 84 % with
50; joint to 81 % after 86,000 images and to 93 % after 244,000."""


class LearnerSettings(Settings):
    """Training of er, er-ace, der++ and finetune on the real images of a step, beside the memory.

    gdumb and joint are trained as `EvaluateSettings` says. "Mammoth" is the published code of DER (Buzzega et
    al., 2020), whose settings were found with ResNet-18. SGD at a constant rate, a new optimiser in every step.
    """

    step_epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over the real images of a step; default 50 on a GPU (Mammoth, CIFAR), 10 on a CPU (chosen), and more for
    few images."""
    batch_current: Annotated[int, Field(ge=1)] = 32
    """Real images of the present step in a training step. Source: Mammoth, CIFAR."""
    batch_memory: Annotated[int, Field(ge=1)] = 32
    """Images drawn from the memory beside them, or all it holds if fewer; der++ draws twice. Source: Mammoth, CIFAR."""
    lr_replay: Annotated[float, Field(gt=0)] = 0.1
    """SGD step size of er, er-ace, der++ and finetune, one for all. Source: Mammoth's er and sgd on CIFAR-10 (its 0.03
    for der++ and er-ace is slow with InstanceNorm, measured)."""
    momentum_replay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """SGD momentum of these. Source: Mammoth."""
    weight_decay_replay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty of these. Source: Mammoth."""
    der_alpha: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the squared distance to the stored logits in der++. Source: Mammoth, CIFAR-10 with 200 images (0.2
    with 500)."""
    der_beta: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the cross-entropy on the memory in der++. Source: Mammoth, CIFAR-10 with 200 or 500 images."""
    replay_dsa_strategy: str = "auto"
    """Augmentation of present and remembered images by these learners, as --dsa-strategy. Mammoth crops and flips; here
    all learners and memories get the same."""
    joint_epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes of joint over everything seen so far; default 100 on a GPU, 10 on a CPU (chosen), and more for
    few images."""

    @field_validator("replay_dsa_strategy")
    @classmethod
    def _known_operations(cls, strategy: str) -> str:
        if strategy != "auto":
            parse_dsa_strategy(strategy, flag="--replay-dsa-strategy")
        return strategy

    def resolved(
        self, *, device_kind: DeviceKind, step_images: int, seen_images: int, symbols: bool | None
    ) -> "LearnerSettings":
        """The settings with no None and no "auto" left.

        Args:
            device_kind: of the workers.
            step_images: real training images of the step; at least 1.
            seen_images: real training images of all classes that joint is to be trained on; at least 1.
            symbols: whether the images show written symbols, which are not mirrored; see `settle_dsa_strategy`.

        Raises:
            ConfigError: see there.
        """
        on_gpu = device_kind == "cuda"
        step_epochs = max(50 if on_gpu else 10, -(-STEP_IMAGES_SHOWN // step_images))
        joint_epochs = max(100 if on_gpu else 10, -(-JOINT_IMAGES_SHOWN // seen_images))
        strategy = settle_dsa_strategy(
            self.replay_dsa_strategy, symbols=symbols, flag="--replay-dsa-strategy"
        )
        return self.model_copy(
            update={
                "step_epochs": self.step_epochs or step_epochs,
                "joint_epochs": self.joint_epochs or joint_epochs,
                "replay_dsa_strategy": strategy,
            }
        )


class ContinualSettings(Settings):
    """An experiment: which stream, memories and learners, and how often it is repeated."""

    memories: tuple[str, ...] = ("random", "herding", "distilled")
    """What stands for classes of the past: none, reservoir, random, herding, kcenter, distilled (by --method, or
    distilled-dm and the like), set (that of --set)."""
    learners: tuple[str, ...] = ("gdumb",)
    """gdumb, er, er-ace, der++, and the floor and ceiling finetune and joint, which use no memory and run once."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Steps the classes arrive in; default that of seq-cifar10, seq-cifar100 and the like."""
    step_classes: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Classes of each step, such as 50 10 10 10 10 10; default equal steps."""
    looks: tuple[str, ...] | None = None
    """All classes at every step, each time under another look, one a step: plain, invert, rotate, blur, contrast,
    noise."""
    blurred: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the images of a class that comes in other steps, such as 0.1. Source: Rainbow Memory."""
    return_after: Annotated[int, Field(ge=1)] | None = None
    """Every class comes in two halves, the second so many steps after the first."""
    online: bool = False
    """One pass: each image is seen once, in mini-batches, and the memory changes after each; for reservoir and
    random."""
    budget: str = "20/class"
    """Size of each memory: "20/class", "2000 images", or bytes as stored, "600kB" or "60kB/class". Source of the
    default: DM."""
    storage: Literal["uint8-scaled", "uint8", "float32"] = "uint8-scaled"
    """Form of distilled images in memory; real ones are uint8. uint8-scaled: 256 levels between the extremes of each
    image."""
    compress: bool = False
    """Keep the images of every memory as lossless WebP files, and count these: a budget in bytes holds more images."""
    orders: Annotated[int, Field(ge=1)] = 5
    """Class orders, those of the seeds 0, 1, ...; each is a run of its own. Source: DM, five."""
    order_seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] | None = None
    """Seeds of the class orders, such as 1993, NumPy's permutations; goes before --orders."""
    class_order: tuple[str, ...] | None = None
    """One class order of your own: every class by name or label, or a file with one a line; goes before --orders."""
    seeds: Annotated[int, Field(ge=1)] = 1
    """Trainings of each class order; random memories are drawn anew for each. Source: DM, three; one is chosen here."""
    preprocess_on: Literal["all", "first-step"] = "all"
    """Training images that mean, standard deviation and ZCA are fitted on. all: also those of classes to come, as the
    published protocols do; first-step: those of the first step, so each class order has its own."""
    score_on: Literal["test", "validation"] = "test"
    """Images the accuracies are measured on; validation, with --validation-frac, to make choices by."""
    pictures: bool = True
    """Pictures of what memories hold, in the output, the report and MLflow; --no-pictures leaves none, of any image."""
