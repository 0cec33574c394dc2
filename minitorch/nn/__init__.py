"""Modules, layers, initialisers, and `functional`."""

from minitorch.nn import functional, init
from minitorch.nn.activation import GELU, ReLU, Sigmoid, SiLU, Softmax, Tanh
from minitorch.nn.attention import CausalSelfAttention, KVCache
from minitorch.nn.containers import ModuleDict, ModuleList, Sequential
from minitorch.nn.convolution import Conv1d, Conv2d
from minitorch.nn.dropout import Dropout
from minitorch.nn.embedding import Embedding, RowEmbedding, RowGradient
from minitorch.nn.linear import Linear
from minitorch.nn.loss import CrossEntropyLoss, MSELoss
from minitorch.nn.module import Module, Parameter
from minitorch.nn.normalization import LayerNorm, RMSNorm
from minitorch.nn.recurrent import GRUCell, RNNCell

__all__ = [
    "GELU",
    "CausalSelfAttention",
    "Conv1d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "GRUCell",
    "KVCache",
    "LayerNorm",
    "Linear",
    "MSELoss",
    "Module",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "RMSNorm",
    "RNNCell",
    "ReLU",
    "RowEmbedding",
    "RowGradient",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "functional",
    "init",
]
