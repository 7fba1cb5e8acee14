"""The parquet view of a distilled set, in the layout `datasets.load_dataset` opens."""

import io
import json
from typing import Any

from atom.set_values import SetValues
from atom.sheet import png_bytes, to_pictures


def parquet_bytes(distilled: SetValues) -> bytes:
    """The decoded images: `image` struct{bytes (PNG), path}, `label` int64 with the class names.

    Where the set has soft labels, they are `soft_label`, float32 [K].

    The PNGs are the 8-bit pictures of `DistilledSet.pixels`, in the order of `DistilledSet.decode`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = to_pictures(distilled.pixels())
    images = [{"bytes": png_bytes(p), "path": f"{index:05d}.png"} for index, p in enumerate(pictures)]
    label = {"names": list(distilled.class_names), "_type": "ClassLabel"}
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": label}
    fields = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]
    columns = [images, distilled.decoded_labels().tolist()]
    if distilled.soft_labels is not None:
        features["soft_label"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"}
        fields.append(("soft_label", pa.list_(pa.float32())))
        columns.append(distilled.decode()[1].tolist())
    schema = pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), buffer)
    return buffer.getvalue()
