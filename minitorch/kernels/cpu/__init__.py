"""The kernels in C++ (csrc/cpu), under the signatures of their references.

Each file checks shapes, dtypes and layout and calls the extension; what the extension does not take
(integers, a dtype that it has no code for) goes to the reference. Where it was not built, nothing
is registered and the reference serves everything.
"""

from minitorch.kernels.cpu.extension import extension

if extension:
    from minitorch.kernels.cpu import activations as activations
    from minitorch.kernels.cpu import attention as attention
    from minitorch.kernels.cpu import cross_entropy as cross_entropy
    from minitorch.kernels.cpu import decoding as decoding
    from minitorch.kernels.cpu import dropout as dropout
    from minitorch.kernels.cpu import elementwise as elementwise
    from minitorch.kernels.cpu import embedding as embedding
    from minitorch.kernels.cpu import experts as experts
    from minitorch.kernels.cpu import latent as latent
    from minitorch.kernels.cpu import lightning as lightning
    from minitorch.kernels.cpu import linear_cross_entropy as linear_cross_entropy
    from minitorch.kernels.cpu import linear_swiglu as linear_swiglu
    from minitorch.kernels.cpu import matmul as matmul
    from minitorch.kernels.cpu import mlp as mlp
    from minitorch.kernels.cpu import norms as norms
    from minitorch.kernels.cpu import optimizers as optimizers
    from minitorch.kernels.cpu import product_keys as product_keys
    from minitorch.kernels.cpu import rope as rope
    from minitorch.kernels.cpu import softmax as softmax
    from minitorch.kernels.cpu import topk as topk
    from minitorch.kernels.cpu import unit_experts as unit_experts
