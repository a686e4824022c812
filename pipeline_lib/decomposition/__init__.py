"""Decompose: the representation of any vision transformer as an exact sum of its components.

Read in this order: `capture` (the model's own graph), `facts` (what is known of its nodes),
`readout` (how the representation reads a tensor, in factored form), `rules` and `attention` (how
that passes an operation), `walk` (what is a component), `plan` (order and names), `contract` and
`run` (one batch), `tokens` (source tokens), and here the public function.

References: P1, Gandelsman et al., ICLR 2024; P2, Balasubramanian et al., NeurIPS 2024.
"""

from pipeline_lib.decomposition.api import Decomposition, decompose, plan_for
from pipeline_lib.decomposition.plan import Plan, make_plan

__all__ = ["Decomposition", "Plan", "decompose", "make_plan", "plan_for"]
