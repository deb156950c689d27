"""The frozen model that the policy is kept close to."""

from __future__ import annotations

import copy
from collections.abc import Callable

from prefopt.errors import PolicyError
from prefopt.policies.fingerprint import fingerprint_tokenizer
from prefopt.policies.load import Policy, load_policy


def freeze(policy: Policy) -> Policy:
    """Make a policy a reference: no gradient, and nothing that behaves as in training."""
    policy.model.requires_grad_(False)
    policy.model.eval()
    return policy


def frozen_copy(policy: Policy) -> Policy:
    """The policy as it is now, in memory of its own."""
    return freeze(Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.name))


def load_reference(
    name: str, policy: Policy, *, load: Callable[[str], Policy] | None = None
) -> Policy:
    """Load another model as the reference of a policy.

    Args:
        name: a folder or hub id.
        policy: whose reference it is going to be.
        load: how; by default whole, and to where the policy is.

    Raises:
        PolicyError: it cannot be loaded, or its tokenizer is another one: scores of different
            tokens cannot be compared.
    """
    loaded = load(name) if load is not None else load_policy(name, device=policy.device)
    reference = freeze(loaded)
    if fingerprint_tokenizer(reference.tokenizer) != fingerprint_tokenizer(policy.tokenizer):
        raise PolicyError(
            "the reference and the policy have different tokenizers",
            field="reference",
            value=name,
            remedy="use a reference with the policy's tokenizer (same vocabulary, special tokens "
            "and chat template)",
        )
    return reference
