"""The parquet view of a distilled set, in the layout `datasets.load_dataset` opens."""

import io
import json

from atom.set_values import SetValues
from atom.sheet import png_bytes, to_pictures


def parquet_bytes(distilled: SetValues) -> bytes:
    """The decoded images: `image` struct{bytes (PNG), path}, `label` int64 with the class names.

    The PNGs are the 8-bit pictures of `DistilledSet.pixels`, in the order of `DistilledSet.decode`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = to_pictures(distilled.pixels())
    images = [{"bytes": png_bytes(p), "path": f"{index:05d}.png"} for index, p in enumerate(pictures)]
    label = {"names": list(distilled.class_names), "_type": "ClassLabel"}
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps(features)},
    )
    buffer = io.BytesIO()
    pq.write_table(pa.table([images, distilled.decoded_labels().tolist()], schema=schema), buffer)
    return buffer.getvalue()
