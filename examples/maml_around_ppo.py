"""MAML around PPO's loss: a start from which one step of PPO's own objective adapts to a goal, without touching ppo.py.

`core.adapt` is the inner loop around any loss. Here that is `ppo.loss`, clipped surrogate, value function and all, in 2-D navigation, where
every goal is a task; the meta-gradient goes through the step. Run: `python examples/maml_around_ppo.py [decisions]`.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flatirons import envs
from flatirons.core import optimisers
from flatirons.core.adapt import adapt
from flatirons.data import onpolicy, rollout
from flatirons.nets import actor_critic
from flatirons.systems import ppo

HORIZON, EPISODES, GOALS = 20, 16, 16


def play(config: Any, task: Any, theta: Any, goal: Any, key: Any) -> tuple[Any, Any]:
    """`EPISODES` episodes towards one goal: PPO's batch of them, and their mean return."""
    collector = rollout.start(task, (), key)
    goals = jnp.broadcast_to(goal[None], (task.num_envs, 2))
    collector = collector._replace(env=collector.env._replace(inner=task.env.placed(goals, collector.env.inner)))
    actor = onpolicy.Actor(actor_critic.policy_params(theta), ())
    _, experience, _ = rollout.rollout(config, task, ppo.policy, actor, collector, HORIZON)
    pi = ppo.distribution(config, task, theta, experience.obs, experience.legal)
    value, next_value = (ppo.value(config, task, theta, obs) for obs in (experience.obs, experience.next_obs))
    normaliser = onpolicy.Normaliser((), (), ())
    batch = onpolicy.rows(onpolicy.advantages(config, normaliser, experience, experience.obs, pi, value, next_value)[0])
    return jax.lax.stop_gradient((batch, jnp.mean(jnp.sum(experience.reward, axis=0))))


def meta_loss(theta: Any, config: Any, task: Any, alpha: Any, goals: Any, key: Any) -> tuple[Any, Any]:
    """The mean over goals of PPO's loss after one step of PPO's loss, and the mean returns before and after it."""
    loss = lambda params, batch: ppo.loss(config, task, params, batch)[0]  # noqa: E731

    def one(goal: Any, key: Any) -> tuple[Any, Any]:
        key_before, key_after = jax.random.split(key)
        batch, before = play(config, task, theta, goal, key_before)
        adapted = adapt(loss, theta, batch, 1, alpha)
        batch, after = play(config, task, adapted, goal, key_after)
        return loss(adapted, batch), jnp.stack([before, after])

    losses, returns = jax.vmap(one)(goals, jax.random.split(key, GOALS))
    return jnp.mean(losses), jnp.mean(returns, axis=0)


@functools.partial(jax.jit, static_argnames="task")
def meta_step(config: Any, task: Any, theta: Any, state: Any, alpha: Any, key: Any) -> tuple[Any, Any, Any]:
    """One step of Adam on the meta-loss of new goals."""
    key_goals, key_play = jax.random.split(key)
    gradient, returns = jax.grad(meta_loss, has_aux=True)(theta, config, task, alpha, task.env.draw(key_goals, GOALS), key_play)
    direction, state = optax.scale_by_adam().update(gradient, state)
    return optimisers.descend(theta, direction, 1e-3), state, returns


def main(total_steps: int = 2_048_000) -> None:
    task: Any = envs.make("meta:navigation", num_envs=EPISODES, max_episode_steps=HORIZON)
    config = ppo.Config(num_envs=EPISODES, num_steps=HORIZON, hidden=(32, 32), normalise_advantage=True)
    theta = ppo.init(config, task, jax.random.key(0)).params
    state = optax.scale_by_adam().init(theta)
    count = max(2, total_steps // (2 * GOALS * EPISODES * HORIZON))
    for i in range(count):
        theta, state, returns = meta_step(config, task, theta, state, 0.1, jax.random.key(i + 1))
        if i % max(1, count // 10) == 0 or i == count - 1:
            before, after = map(float, returns)
            print(f"meta-iteration {i + 1:4d}: return {before:6.2f} before the step, {after:6.2f} after it")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
