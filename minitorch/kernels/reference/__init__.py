"""The reference implementation of every kernel, in NumPy: float arrays in, float arrays out.

These are the formulas that the compiled kernels are tested against, and what runs where there is no
compiler. They are written to be read, and to make few passes over memory: each allocates its result
and works in it. float32 and float64; the engine converts half precision before it calls. A function
that has a backward returns what that needs after its result, and never the input itself.
"""

from minitorch.kernels.reference import activations as activations
from minitorch.kernels.reference import attention as attention
from minitorch.kernels.reference import collectives as collectives
from minitorch.kernels.reference import cross_entropy as cross_entropy
from minitorch.kernels.reference import decoding as decoding
from minitorch.kernels.reference import dropout as dropout
from minitorch.kernels.reference import elementwise as elementwise
from minitorch.kernels.reference import embedding as embedding
from minitorch.kernels.reference import experts as experts
from minitorch.kernels.reference import latent as latent
from minitorch.kernels.reference import lightning as lightning
from minitorch.kernels.reference import linear_cross_entropy as linear_cross_entropy
from minitorch.kernels.reference import linear_swiglu as linear_swiglu
from minitorch.kernels.reference import matmul as matmul
from minitorch.kernels.reference import mlp as mlp
from minitorch.kernels.reference import norms as norms
from minitorch.kernels.reference import optimizers as optimizers
from minitorch.kernels.reference import product_keys as product_keys
from minitorch.kernels.reference import reductions as reductions
from minitorch.kernels.reference import rope as rope
from minitorch.kernels.reference import sampling as sampling
from minitorch.kernels.reference import scaled_experts as scaled_experts
from minitorch.kernels.reference import scaled_linear as scaled_linear
from minitorch.kernels.reference import scaled_mm as scaled_mm
from minitorch.kernels.reference import softmax as softmax
from minitorch.kernels.reference import topk as topk
from minitorch.kernels.reference import unit_experts as unit_experts
