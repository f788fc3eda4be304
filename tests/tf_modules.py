"""Modules and models of users of TensorFlow, for `tf_programs`, which imports them when it makes a first one."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras


class Block(tf.Module):
    """A module of two variables."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.w = tf.Variable(rng.normal(size=(3, 2)).astype(np.float32))
        self.b = tf.Variable(rng.normal(size=2))


class Net(tf.Module):
    """Lists, dicts with odd keys, tuples, a tied variable and a cycle."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.blocks = [Block(rng), Block(rng)]
        self.odd = {name: tf.Variable(rng.integers(9, size=2)) for name in ("a/b", "x.y", ".S", "層", "with space", "..")}
        self.text = tf.Variable(["a\0", "层"])
        self.tied = self.blocks[0].w
        self.pair = (tf.Variable(2.5, dtype=tf.float64), Block(rng))
        self.me = self


class Tower(tf_keras.Model):
    """A subclassed model: its weights stand where its attributes do, and one layer is reached in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = [tf_keras.layers.Dense(6, activation="tanh"), tf_keras.layers.BatchNormalization()]
        self.heads = {"main": tf_keras.layers.Dense(2)}
        self.scale = tf.Variable(np.float32([1, 2]))
        self.first = self.stages[0]

    def call(self, inputs: Any) -> Any:
        """The model's answer."""
        for stage in self.stages:
            inputs = stage(inputs)
        return self.heads["main"](inputs) * self.scale
