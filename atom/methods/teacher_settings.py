"""What the user may set of soft labels by teachers; free of heavy imports, for `--help`."""

from typing import Annotated

from pydantic import Field

from atom.settings import Settings


class TeacherSettings(Settings):
    """Soft labels for the finished images, from networks trained on the real ones."""

    teacher_epoch: Annotated[int, Field(ge=0)] | None = None
    """Label the finished images by what networks say of them after so many epochs on the real ones; default hard
    labels, or those that the method learned."""
    num_teachers: Annotated[int, Field(ge=1)] = 1
    """Networks whose answers are averaged. Source: Qin et al. (2024)."""
    lr_teacher: Annotated[float, Field(gt=0)] = 0.05
    """Step size of their SGD, without momentum. Chosen, as of the experts of mtt; Qin et al.: 0.0005 to 0.01."""
    batch_teacher: Annotated[int, Field(ge=1)] = 64
    """Images of a step of theirs. Chosen, as of the experts of mtt."""
