"""Ranks that exchange tensors: sums, parts and copies of what each of them has.

`device_group` makes ranks that share one device, `peer_group` is one rank of several GPUs. The
names and meanings are those of torch.distributed, but a call takes a list: of every rank that lives
in this program its tensor.
"""

from minitorch.distributed.group import Group, device_group
from minitorch.distributed.peers import peer_group

__all__ = ["Group", "device_group", "peer_group"]
