"""SEENN-II: a small policy network sees the input once and predicts the timestep at which to stop.

Source: Li, Geller, Kim and Panda, NeurIPS 2023. For each sample x the policy v(x) is a distribution over the actions
k = 0 .. T-1 ("run k + 1 timesteps"). Choosing k earns 2^-k if the network is right after k + 1 timesteps and costs
beta if it is wrong. With few actions the expectation is exact and can be differentiated directly
(``objective=expected``, as in the authors' code):

    L = mean_x w(x) sum_k v_k(x) [ beta (1 - c_k(x)) - 2^-k c_k(x) ],   w(x) = c_0 + rho / (1 - rho) (1 - c_0)

rho is the accuracy after one timestep; w gives the samples that fail there as much weight in total as the others, and
is clamped here, because it diverges for rho near 1. ``objective=reinforce`` samples an action instead, with the greedy
one as its baseline: E[(R(z) - R(greedy)) grad log v(z)], the same optimum with more variance.

The spiking network is frozen: training needs only its correctness [N, T] from the calibration trace and the inputs, and
takes seconds. Policies are trained on the ``fit`` half of the calibration split; to train them on training data as the
authors do, record that split and give it to ``exitbench replay`` as the calibration trace. There the network is almost
always right, hence the clamp. On event data the policy sees the first frame only.

``seenn-ii-joint`` is the optional stage, off unless a recipe names it, in which the spiking network and a policy are
tuned together ("early-exit-aware training"): the policy by the objective above, the network by the cross-entropy of
its mean readout at each t, weighted by the policy's probability of stopping there. The paper gives no equation for
it; this form is ours. That policy is discarded, and seenn-ii fits its own to the tuned network.

No complete public implementation of SEENN-II is known to us. The paper's beta and epochs are not published, so the
betas here are this project's choice; the policy network is the paper's ResNet-8 at half width behind a strided first
layer.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from bench_core import (
    Calibration,
    Evidence,
    ExitPolicy,
    ExitStrategy,
    Knob,
    ListedPolicies,
    Operations,
    Overhead,
    Regularizer,
    Requirement,
    State,
    Synapse,
    TrainingBatch,
    hookimpl,
)

BETAS = (0.25, 4.0, 64.0)
VERSION = 1
BATCH = 50
WEIGHT_DECAY = 5e-4
LARGEST_WEIGHT = 20.0


class PolicyNetwork(nn.Module):
    """ResNet-8 with 8, 16 and 32 channels after a convolution of stride 2: input [B, C, H, W] to scores [B, T]."""

    def __init__(self, channels: int, actions: int) -> None:
        """Create an untrained network for C = ``channels`` and T = ``actions``."""
        super().__init__()
        self.stem = _convolution(channels, 8, 2)
        self.blocks = nn.Sequential(_Block(8, 8, 1), _Block(8, 16, 2), _Block(16, 32, 2))
        self.head = nn.Linear(32, actions)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores [B, T] of inputs [B, C, H, W]."""
        features = self.blocks(F.relu(self.stem(x)))
        scores: torch.Tensor = self.head(features.mean((2, 3)))
        return scores


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs, stride)
        self.second = _convolution(outputs, outputs, 1)
        plain = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if plain else _convolution(inputs, outputs, stride, size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def _convolution(inputs: int, outputs: int, stride: int, size: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class PlannedByNetwork(ExitPolicy):
    """Stop each input at the timestep that the policy network prefers."""

    def __init__(self, network: PolicyNetwork, macs: float) -> None:
        """Use a trained network, which costs ``macs`` per evaluation."""
        self._network = network.eval()
        self._macs = macs

    def overhead(self, classes: int) -> Overhead:
        """Return the cost of one network evaluation per sample, and of one comparison per decision."""
        del classes
        actions = self._network.head.out_features
        return Overhead(Operations(macs=self._macs, comparisons=actions - 1), Operations(comparisons=1))

    def start(self, evidence: Evidence) -> State:
        """Evaluate the policy network on each sample's first frame."""
        with torch.inference_mode():
            chunks = [self._network(part).argmax(1) for part in torch.split(evidence.inputs[:, 0], 500)]
        return {"plan": torch.cat(chunks) + 1}

    def should_exit(self, evidence: Evidence, state: State) -> tuple[torch.Tensor, State]:
        """Stop the samples whose planned timestep is reached."""
        return state["plan"] <= evidence.t, state


class SeennII(ExitStrategy):
    """A policy network on the input, one per beta."""

    name: ClassVar[str] = "seenn-ii"
    reference: ClassVar[str] = "Li et al., NeurIPS 2023"
    family_knob: ClassVar[Knob] = Knob(
        "beta", low=0.0, open_low=True, help="cost of a wrong answer; larger stops later"
    )
    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("lr", "float", 0.1, low=0.0, open_low=True, help="learning rate of SGD, cosine to zero"),
        Knob("epochs", "int", 30, low=1, help="passes over the calibration data"),
        Knob("objective", "choice", "expected", choices=("expected", "reinforce"), help="exact or sampled reward"),
    )
    requires: ClassVar[frozenset[Requirement]] = frozenset({Requirement.INPUTS})

    def fit(self, calibration: Calibration) -> ListedPolicies:
        """Return policies for ``BETAS``, each trained on first use."""

        def make(beta: float) -> ExitPolicy:
            made_from = {"strategy": self.name, "version": VERSION, "beta": beta, "parameters": self.parameters}
            state = calibration.artifact(made_from, lambda: train_policy(calibration, beta, self.parameters))
            network = PolicyNetwork(state["stem.0.weight"].shape[1], len(state["head.bias"]))
            network.load_state_dict({name: tensor for name, tensor in state.items() if name != "macs"})
            return PlannedByNetwork(network, float(state["macs"]))

        made: dict[float, ExitPolicy] = {}

        def make_once(beta: float) -> ExitPolicy:
            if beta not in made:
                made[beta] = make(beta)
            return made[beta]

        return ListedPolicies(BETAS, make_once)


def train_policy(calibration: Calibration, beta: float, parameters: Mapping[str, object]) -> State:
    """Train a policy network on the calibration data for one beta.

    Returns:
        Its state, with its multiply-accumulates per evaluation as ``macs``.
    """
    rate, epochs, objective = parameters["lr"], parameters["epochs"], parameters["objective"]
    assert isinstance(rate, float) and isinstance(epochs, int)
    inputs, correct = calibration.first_frames, calibration.trace.correct.to(torch.float32)
    reward, weight = rewards(correct, beta) / max(1.0, beta), sample_weights(correct)  # same optimum, same rate
    steps = epochs * -(-len(inputs) // BATCH)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PolicyNetwork(inputs.shape[1], correct.shape[1]).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(epochs):
            for index in torch.split(torch.randperm(len(inputs)), BATCH):
                if len(index) == 1:
                    continue  # batch normalisation needs two samples
                scores = network(inputs[index])
                loss = (expected_loss if objective == "expected" else reinforce_loss)(
                    scores, reward[index], weight[index]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return {**network.state_dict(), "macs": torch.tensor(float(count_macs(network, inputs.shape[1:])))}


def rewards(correct: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the reward of each action, [N, T]: 2^-k if right, -beta if wrong. ``correct``: 0 or 1, [N, T]."""
    gain = 2.0 ** -torch.arange(correct.shape[1], dtype=correct.dtype)
    return correct * gain - beta * (1.0 - correct)


def sample_weights(correct: torch.Tensor) -> torch.Tensor:
    """Return w(x) of the objective, clamped: 1 for samples right after one timestep, else rho / (1 - rho), [N]."""
    first = correct[:, 0]
    rho = float(first.mean())
    ratio = min(rho / max(1.0 - rho, 1e-9), LARGEST_WEIGHT)
    return first + ratio * (1.0 - first)


def expected_loss(scores: torch.Tensor, reward: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return minus the exact expected reward under softmax(scores). Shapes: [B, T], [B, T], [B]."""
    return -(weight * (scores.softmax(1) * reward).sum(1)).mean()


def reinforce_loss(scores: torch.Tensor, reward: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return a loss whose gradient estimates ``expected_loss``'s: one sampled action, the greedy one as baseline."""
    log_policy = scores.log_softmax(1)
    action = torch.multinomial(log_policy.detach().exp(), 1)
    greedy = scores.detach().argmax(1, keepdim=True)
    advantage = reward.gather(1, action) - reward.gather(1, greedy)
    return -(weight[:, None] * advantage * log_policy.gather(1, action)).mean()


def count_macs(network: PolicyNetwork, input_shape: torch.Size) -> int:
    """Return the multiply-accumulates of one evaluation, exact at borders."""
    total = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor], _output: object) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        total += int(Synapse(module).fan_out(inputs[0].shape[1:]).sum())

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    network.eval()
    with torch.no_grad():
        network(torch.zeros(1, *input_shape))
    for hook in hooks:
        hook.remove()
    return total


class SeennIIJoint(Regularizer):
    """Joint tuning: sum_k stop_gradient(v_k) CE(m_{k+1}, y) for the network, the expected reward for the policy."""

    name: ClassVar[str] = "seenn-ii-joint"
    reference: ClassVar[str] = "exitbench, after Li et al., NeurIPS 2023"
    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("beta", "float", 4.0, low=0.0, open_low=True, help="cost of a wrong answer; larger stops later"),
    )

    def companion(self, input_shape: tuple[int, int, int], timesteps: int) -> nn.Module:
        """Return the policy network that is trained along."""
        return PolicyNetwork(input_shape[0], timesteps)

    def loss(self, batch: TrainingBatch) -> torch.Tensor:
        """Return the loss of a batch for the network and its policy, a scalar."""
        beta, policy = self.parameters["beta"], batch.companion
        assert isinstance(beta, float) and policy is not None
        totals = batch.logits.cumsum(0)  # [T, B, K]
        means = totals / torch.arange(1, len(totals) + 1)[:, None, None]
        correct = (totals.detach().argmax(2) == batch.labels).T.to(torch.float32)  # [B, T]
        scores = policy(batch.inputs)
        reward = rewards(correct, beta) / max(1.0, beta)
        chosen = expected_loss(scores, reward, sample_weights(correct))
        errors = F.cross_entropy(means.flatten(0, 1), batch.labels.repeat(len(means)), reduction="none")
        stopped = (scores.detach().softmax(1) * errors.view(len(means), -1).T).sum(1).mean()
        total: torch.Tensor = chosen + stopped
        return total


@hookimpl
def bench_exit_strategies() -> list[ExitStrategy]:
    """Return SEENN-II."""
    return [SeennII()]


@hookimpl
def bench_regularizers() -> list[Regularizer]:
    """Return the joint tuning of network and policy."""
    return [SeennIIJoint()]
