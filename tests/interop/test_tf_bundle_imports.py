"""TensorFlow and this backend in one process, imported in either order: both register protobuf messages."""

import os
import subprocess
import sys

import pytest

THEIRS = """
import tensorflow as tf
from tensorflow.core.protobuf import saver_pb2, tensor_bundle_pb2, trackable_object_graph_pb2
"""
OURS = """
import ckptmgr
import ckptmgr_tf_bundle.messages
import numpy as np
ckptmgr.save("first", {"v": np.float32([1, 2])}, backend="tf_bundle")
assert ckptmgr.load("first")["v"].tolist() == [1, 2]
"""
BOTH = """
v = tf.Variable([0.0, 0.0])
tf.train.Checkpoint(v=v).restore("first").assert_consumed()
prefix = tf.train.Checkpoint(v=v).save("second")
assert ckptmgr.load(prefix)["v"].tolist() == [1, 2]
stored = tf.train.load_variable("first", "_CHECKPOINTABLE_OBJECT_GRAPH")
graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(stored)
assert [child.local_name for child in graph.nodes[0].children] == ["v", "save_counter"]
print("good")
"""
ALONE = """
import sys
assert not {"tensorflow", "keras", "tf_keras"} & {*sys.modules}
print("good")
"""


@pytest.mark.parametrize("parts", [THEIRS + OURS + BOTH, OURS + THEIRS + BOTH, OURS + ALONE], ids=["after", "before", "alone"])
def test_backend_works_beside_tensorflow_and_without_it(parts: str, tmp_path: object) -> None:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}

    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:google.protobuf", "-c", parts],
        env=environment,
        cwd=str(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.stdout.strip() == "good", done.stderr[-3000:]
