"""Decompose: the representation of any vision transformer as an exact sum of its components.

Read in this order.

1. Capture: `capture` (the model's own graph), `windows` and `narrow` (how it is laid out and cut to
   the rows that are read), `facts` and `operations` (what is known of its nodes).
2. Plan: `plan` (order and names), made once per architecture and input shape.
3. Readout: `readout` (how the representation reads a tensor, in factored form), `rules`,
   `attention` and `frozen` (how that passes an operation), `merging` (several at one tensor).
4. Components: `paths` (where linear paths lead), `walk` (the residual stream), `branches` and
   `heads` (what wrote to it), `leaves` (what is found).
5. Contract: `records` (what is kept of a batch), `contract` and `run` (one batch), `tokens` (source
   tokens), `spans` (where a component can write), and `api`, the public function.

References: P1, Gandelsman et al., ICLR 2024; P2, Balasubramanian et al., NeurIPS 2024.
"""

from pipeline_lib.decomposition.api import Decomposition, decompose, plan_for
from pipeline_lib.decomposition.plan import Plan, make_plan

__all__ = ["Decomposition", "Plan", "decompose", "make_plan", "plan_for"]
