"""The protobuf messages of TensorFlow's checkpoints, in a descriptor pool of their own.

A real TensorFlow in the same process registers its messages in protobuf's default pool; ours share neither the pool nor
their names with it, so the two never meet.

Source: TensorFlow's tensor_bundle.proto, tensor_shape.proto, tensor_slice.proto, versions.proto,
trackable_object_graph.proto and checkpoint_state.proto; fields that nothing here needs are left out.
"""

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "ckptmgr.tf_bundle"
_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "double": _Field.TYPE_DOUBLE,
    "fixed32": _Field.TYPE_FIXED32,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
}
# Message -> fields as (number, name, type). "*" repeats; "?" tells an absent value from 0. Enums are read as numbers.
_MESSAGES = {
    "VersionDef": [(1, "producer", "int32"), (2, "min_consumer", "int32"), (3, "bad_consumers", "int32*")],
    "BundleHeader": [(1, "num_shards", "int32"), (2, "endianness", "int32"), (3, "version", "VersionDef")],
    "Dim": [(1, "size", "int64")],
    "Shape": [(2, "dim", "Dim*"), (3, "unknown_rank", "bool")],
    "Extent": [(1, "start", "int64"), (2, "length", "int64?")],
    "Slice": [(1, "extent", "Extent*")],
    "BundleEntry": [
        (1, "dtype", "int32"),
        (2, "shape", "Shape"),
        (3, "shard_id", "int32"),
        (4, "offset", "int64"),
        (5, "size", "int64"),
        (6, "crc32c", "fixed32"),
        (7, "slices", "Slice*"),
    ],
    "Child": [(1, "node_id", "int32"), (2, "local_name", "string")],
    "Attribute": [(1, "name", "string"), (2, "full_name", "string"), (3, "checkpoint_key", "string")],
    "Slot": [(1, "original_variable_node_id", "int32"), (2, "slot_name", "string"), (3, "slot_variable_node_id", "int32")],
    "BoolValue": [(1, "value", "bool")],
    "Node": [
        (1, "children", "Child*"),
        (2, "attributes", "Attribute*"),
        (3, "slot_variables", "Slot*"),
        (5, "has_checkpoint_values", "BoolValue"),
    ],
    "ObjectGraph": [(1, "nodes", "Node*")],
    "CheckpointState": [
        (1, "model_checkpoint_path", "string"),
        (2, "all_model_checkpoint_paths", "string*"),
        (3, "all_model_checkpoint_timestamps", "double*"),
        (4, "last_preserved_timestamp", "double"),
    ],
}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="ckptmgr/tf_bundle.proto", package=_PACKAGE, syntax="proto3")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for number, name, kind in fields:
            field = described.field.add(name=name, number=number)
            field.label = _Field.LABEL_REPEATED if kind.endswith("*") else _Field.LABEL_OPTIONAL
            plain = kind.rstrip("*?")
            if plain in _TYPES:
                field.type = _TYPES[plain]
            else:
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{plain}"
            if kind.endswith("?"):
                field.proto3_optional, field.oneof_index = True, len(described.oneof_decl)
                described.oneof_decl.add(name=f"_{name}")
    return file


_pool = descriptor_pool.DescriptorPool()
_pool.AddSerializedFile(_file().SerializeToString())


def _class(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


BundleHeader: Final = _class("BundleHeader")
BundleEntry: Final = _class("BundleEntry")
ObjectGraph: Final = _class("ObjectGraph")
CheckpointState: Final = _class("CheckpointState")
