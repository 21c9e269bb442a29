"""The rules by name, and what belongs to each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rayff.learning.analytic import fast_forward, fast_rule
from rayff.learning.autograd import Rule, plain_rule
from rayff.learning.chain import Chain
from rayff.learning.layer import CWConv


@dataclass(frozen=True, kw_only=True)
class RuleSet:
    """How layers learn and classify, and how their weights lie in memory."""

    learn: Rule
    classify: Callable[[CWConv, Tensor], tuple[Tensor, Tensor]]
    """Takes a layer and what enters it to its features and its goodness, without dropout."""
    memory_format: torch.memory_format

    def arrange(self, chain: Chain) -> Chain:
        """Return the chain with its weights in the format that the rule wants."""
        return chain.to(memory_format=self.memory_format)


RULES = {
    "plain": RuleSet(
        learn=plain_rule, classify=CWConv.forward, memory_format=torch.contiguous_format
    ),
    "fast": RuleSet(learn=fast_rule, classify=fast_forward, memory_format=torch.channels_last),
}
