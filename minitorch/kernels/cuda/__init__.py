"""CUDA kernels: on a GPU through CuPy's arrays, or in the emulator, from the same source."""

from minitorch.kernels.cuda import activations as activations
from minitorch.kernels.cuda import attention as attention
from minitorch.kernels.cuda import collectives as collectives
from minitorch.kernels.cuda import cross_entropy as cross_entropy
from minitorch.kernels.cuda import dropout as dropout
from minitorch.kernels.cuda import elementwise as elementwise
from minitorch.kernels.cuda import embedding as embedding
from minitorch.kernels.cuda import experts as experts
from minitorch.kernels.cuda import linear_cross_entropy as linear_cross_entropy
from minitorch.kernels.cuda import linear_swiglu as linear_swiglu
from minitorch.kernels.cuda import matmul as matmul
from minitorch.kernels.cuda import mlp as mlp
from minitorch.kernels.cuda import norms as norms
from minitorch.kernels.cuda import optimizers as optimizers
from minitorch.kernels.cuda import reductions as reductions
from minitorch.kernels.cuda import rope as rope
from minitorch.kernels.cuda import sampling as sampling
from minitorch.kernels.cuda import scaled_experts as scaled_experts
from minitorch.kernels.cuda import scaled_linear as scaled_linear
from minitorch.kernels.cuda import scaled_mm as scaled_mm
from minitorch.kernels.cuda import softmax as softmax
from minitorch.kernels.cuda import topk as topk
