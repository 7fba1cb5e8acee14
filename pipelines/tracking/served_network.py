"""What MLflow runs to serve a network: this file is copied into every logged model.

It imports nothing of this project, so that torch, Pillow and MLflow are all that a server needs, and reads two
artifacts: `network`, TorchScript with the preprocessing inside, and `about`, JSON with classes and shape of the images.
"""

# N images, C channels, H height, W width, K classes

import base64
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from PIL import Image, ImageOps

_CHUNK = 256
"""Images a pass, bounds memory."""

_GREY = ("1", "L", "LA", "La")


class ServedNetwork(PythonModel):
    """Rows with an image, encoded or as pixels, to class and probabilities."""

    def load_context(self, context: Any) -> None:
        """Read the artifacts."""
        about = json.loads(Path(context.artifacts["about"]).read_text(encoding="utf-8"))
        self.classes: list[str] = about["classes"]
        self.shape: tuple[int, ...] = tuple(about["input"][1:])
        self.resize: int | None = about["resize"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # deprecated for what only Python reads
            self.network = torch.jit.load(context.artifacts["network"], map_location="cpu").eval()

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Class and probabilities of every row.

        Args:
            context: not used.
            model_input: rows with either `image`, an encoded image in base64, or `pixels`, [C][H][W] of 0 to 255.
            params: not used.

        Returns:
            A table: `class`, its name, and `probabilities`, by name of class.

        Raises:
            MlflowException: an image is missing, broken, of another shape, or its values are no pixels.
        """
        frame = pd.DataFrame(model_input)  # `inputs` of a request come as a list
        images = [self._image(row, number) for number, row in enumerate(frame.to_dict("records"))]
        rows = []
        for first in range(0, len(images), _CHUNK):
            with torch.no_grad():
                shares_NK = self.network(torch.from_numpy(np.stack(images[first : first + _CHUNK])))
            for shares_K in shares_NK:
                named = dict(zip(self.classes, shares_K.tolist(), strict=True))
                rows.append({"class": self.classes[int(shares_K.argmax())], "probabilities": named})
        return pd.DataFrame(rows, columns=["class", "probabilities"])

    def _image(self, row: dict[Any, Any], number: int) -> np.ndarray:
        """uint8 [C, H, W]."""
        given = {name: row[name] for name in ("image", "pixels") if _is_there(row.get(name))}
        if len(given) != 1:
            raise _refused(number, f"{len(given)} images", "either image, encoded in base64, or pixels")
        read, value = (self._decoded, given["image"]) if "image" in given else (_pixels, given["pixels"])
        found_CHW = read(value, number)
        channels = self.shape[0]
        if len(found_CHW) == 1:
            found_CHW = np.repeat(found_CHW, channels, axis=0)
        elif channels == 1 and len(found_CHW) == 3 and (found_CHW == found_CHW[:1]).all():
            found_CHW = found_CHW[:1]
        if found_CHW.shape != self.shape:
            raise _refused(number, f"{list(found_CHW.shape)} values", f"{list(self.shape)}, channels first")
        return found_CHW

    def _decoded(self, text: str, number: int) -> np.ndarray:
        """As `atom.data.decode` reads images: upright, on white, grey or RGB, cropped and resized if asked."""
        _, height, width = self.shape
        try:
            with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as picture:
                # Before any pixel is decoded: a small file may hold a huge image.
                if self.resize is None and picture.size not in ((width, height), (height, width)):
                    found = f"an image of {picture.width}x{picture.height} pixels"
                    raise _refused(number, found, f"{width}x{height} (width x height)")
                if picture.mode.split(";")[0] in ("I", "F"):
                    raise _refused(number, f"an image of mode {picture.mode}", "8 bits a channel")
                if picture.width * picture.height > (Image.MAX_IMAGE_PIXELS or np.inf):
                    raise _refused(number, "too many pixels", f"at most {Image.MAX_IMAGE_PIXELS}")
                wanted = "L" if picture.mode in _GREY else "RGB"
                picture.load()
                upright = ImageOps.exif_transpose(picture) if picture.getexif() else picture
        except MlflowException:
            raise
        except (
            Exception
        ) as error:  # Pillow's readers let struct.error, SyntaxError, KeyError and others through
            reason = " ".join(str(error).partition(" <_io")[0].split())[:120] or type(error).__name__
            raise _refused(number, f"no image ({reason})", "an encoded image in base64") from error
        if upright.has_transparency_data:
            layered = upright.convert("RGBA")
            low, high = layered.getchannel("A").getextrema()
            if low != high:
                upright = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
        plain = upright.convert(wanted)
        if self.resize is not None and plain.size != (self.resize, self.resize):
            plain = ImageOps.fit(plain, (self.resize, self.resize), method=Image.Resampling.BILINEAR)
        pixels = np.asarray(plain, dtype=np.uint8)
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _is_there(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and np.isnan(value))


def _pixels(value: Any, number: int) -> np.ndarray:
    try:
        found_CHW = np.array([[list(line) for line in plane] for plane in value], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise _refused(number, "pixels that are no array", "[C][H][W] of numbers") from error
    whole_CHW = found_CHW.clip(0, 255).astype(np.uint8)
    if found_CHW.ndim != 3 or (whole_CHW != found_CHW).any():
        raise _refused(number, "pixels of another kind", "[C][H][W] of whole numbers from 0 to 255")
    return whole_CHW


def _refused(number: int, received: str, expected: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(f"Row {number}: received {received}, expected {expected}.")


set_model(ServedNetwork())
