"""Beam search, beam sampling, and groups of beams that are kept apart.

Groups: Vijayakumar et al., "Diverse Beam Search" (arXiv 1610.02424): the groups choose one after the other, and a token
costs a group `diversity_penalty` for each beam of earlier groups that has just chosen it (Hamming diversity).

Letters: B prompts, G groups, K beams of a group, C candidates of a group, V vocabulary, S tokens so far, N new tokens,
R = B * G * K beams, A of them those of prompts that are still decoded: the rows of the model.
"""

from __future__ import annotations

from typing import Any

import torch

from quintet.errors import GenerationError
from quintet.generation.answers import check_answers
from quintet.generation.call import Call
from quintet.generation.loops.active import ActiveRows
from quintet.generation.loops.beam_options import BeamOptions, resolve_beams
from quintet.generation.loops.hypotheses import Hypotheses, Hypothesis
from quintet.generation.loops.scores import check_usable, processed
from quintet.generation.output import GenerateBeamDecoderOnlyOutput
from quintet.generation.run import Run
from quintet.generation.sampling import hamming_diversity
from quintet.generation.stopping import StopRules

__all__ = ["BeamRun", "draw", "start"]


def start(call: Call) -> BeamRun:
    """Return the search of a call.

    Raises:
        GenerationError: an option contradicts the search.
    """
    return BeamRun(call, resolve_beams(call))


class BeamRun(Run):
    """A beam search on its way.

    Args:
        call: The call.
        options: See BeamOptions.
    """

    def __init__(self, call: Call, options: BeamOptions) -> None:
        self.call, self.options = call, options
        self._state = call.begin()
        self._rows = call.sequences()  # (R, S)
        self._groups = [
            Hypotheses(
                call.rows,
                options.beams,
                options.candidates,
                most=call.lengths.new,
                length_penalty=options.length_penalty,
                early_stopping=options.early_stopping,
                drops=options.drops,
            )
            for _ in range(options.groups)
        ]
        candidates = call.rows * options.candidates
        self._rules = [StopRules(call.criteria, candidates, call.prompt.ids.shape[1]) for _ in self._groups]
        self._keeps_ids = bool(call.processors) or self._rules[0].reads_ids
        self._active = ActiveRows(len(self._rows.view))
        self._kept: dict[str, list[Any]] = {"scores": [], "logits": [], **{name: [] for name in call.collect}}

    def finish(self, streamer: Any) -> GenerateBeamDecoderOnlyOutput | torch.Tensor:
        """See Run.

        Raises:
            GenerationError: there is a streamer; a prompt has no usable score; a processor returned another shape.
        """
        if streamer is not None:
            raise GenerationError(
                "a streamer is given, and beam search knows its text only at the end. Use num_beams=1 to stream."
            )
        logits = self._state.prefill_copies(self.options.groups * self.options.beams)
        while True:
            newest = self._step(logits)
            done = all(group.finished for group in self._groups)
            if done and not self.call.config.return_dict_in_generate:
                return self._packed()
            rows, tokens = self._next_rows()
            self._reorder(rows, newest)
            if done:  # a returned cache belongs to the beams
                return self._packed()
            self._follow(rows, tokens)
            if self.options.drops:
                self._drop()
            logits = self._active.spread(self._state.advance(self._active.pick(tokens)))  # (A, V) -> (R, V)

    # --- one step -----------------------------------------------------------------------------------------------------

    def _step(self, logits: torch.Tensor) -> int:
        """Choose the next beams from the model's scores (R, V); return how many tokens of the cache have to move."""
        options = self.options
        scores = logits.log_softmax(dim=-1)
        if self.call.processors:
            scores = processed(self.call.processors, self._ids(), scores)
        grouped = scores.view(self.call.rows, options.groups, options.beams, -1)  # (R, V) -> (B, G, K, V)
        parts = [grouped[:, index] for index in range(options.groups)]
        if self.call.keep_logits:
            self._kept["logits"].append(logits)
        for name in self.call.collect:
            self._kept[name].append(self._state.collected[name])
        if self.call.keep_scores:
            self._kept["scores"].append(scores)
        newest = 0
        for index, part in enumerate(parts):
            if self._groups[index].finished:
                self._groups[index].rest()
                continue
            if index:
                part = self._kept_apart(part, index)
                if self.call.keep_scores:
                    self._kept["scores"][-1] = _with_group(self._kept["scores"][-1], part, index, options.groups)
            newest = max(newest, self._choose(part, index))
        return newest

    def _kept_apart(self, scores: torch.Tensor, index: int) -> torch.Tensor:
        """Lower (B, K, V) scores of tokens that earlier groups have just chosen."""
        earlier = [group.said for group in self._groups[:index]]
        tokens, counted = (torch.cat(part, dim=1).to(scores.device) for part in zip(*earlier, strict=True))
        flat = scores.flatten(0, 1)  # (B, K, V) -> (B * K, V)
        flat = hamming_diversity(flat, tokens, self.options.diversity_penalty, counted)
        return flat.view_as(scores)

    def _choose(self, scores: torch.Tensor, index: int) -> int:
        """Choose the next beams of a group from its scores (B, K, V); see `_step`."""
        group, vocabulary = self._groups[index], scores.shape[-1]
        sums = scores + group.scores.to(scores.device)[:, :, None]
        sums = sums.flatten(1)  # (B, K, V) -> (B, K * V)
        if self.options.do_sample:
            values, places = draw(sums, self.options.candidates, self.options.generator)
        else:
            values, places = sums.topk(self.options.candidates, dim=1)
        values, places = _to_host(values, places)  # the step's one wait for the device
        self._check(scores, values, group)
        parents, tokens = places // vocabulary, places % vocabulary
        rules = self._rules[index]
        rules.forget()
        rules.update(
            tokens.flatten().tolist(),
            lambda: self._candidate_ids(parents, tokens, index),
            lambda: tuple(self._kept["scores"]) or None,
        )
        return group.step(values, parents, tokens, torch.tensor(rules.done).view_as(tokens))

    @staticmethod
    def _check(scores: torch.Tensor, values: torch.Tensor, group: Hypotheses) -> None:
        """Check that every search has a candidate."""
        best = values.amax(dim=1)  # NaN wins
        broken = ~(best < torch.inf) | ((best == -torch.inf) & group.alive)
        if bool(broken.any()):
            rows = scores.flatten(0, 1)  # (B, K, V) -> (B * K, V)
            unusable = ~((rows.amax(dim=1).cpu() < torch.inf) & (rows.amax(dim=1).cpu() > -torch.inf))
            check_usable(rows, [-1 if bad else 0 for bad in unusable.tolist()])

    # --- rows of the model --------------------------------------------------------------------------------------------

    def _next_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which row each new beam goes on from, and its last token, both (R,) on the model's device."""
        parents = torch.stack([group.parents for group in self._groups], dim=1)  # (B, G, K)
        tokens = torch.stack([group.tokens for group in self._groups], dim=1)
        first = torch.arange(parents.shape[0] * parents.shape[1]) * self.options.beams  # (B * G,)
        rows = parents + first.view(parents.shape[0], parents.shape[1], 1)
        both = torch.stack((rows.flatten(), tokens.flatten())).to(self.call.prompt.ids.device)  # (2, R)
        return both[0], both[1]

    def _reorder(self, rows: torch.Tensor, newest: int) -> None:
        """Let the rows of the model follow the beams; see `_next_rows`."""
        index = self._active.index
        if index is not None:
            places = torch.zeros_like(rows).index_copy_(0, index, torch.arange(len(index), device=rows.device))
            rows = places[rows[index]]  # (R,) -> (A,)
        # With dropout, copies of a prompt have nothing in common.
        self._state.reorder(rows, None if self.call.model.training else newest)

    def _drop(self) -> None:
        """Take prompts that are settled out of the model's batch."""
        settled = torch.stack([group.settled for group in self._groups]).all(dim=0)  # (B,)
        done = settled.repeat_interleave(self.options.groups * self.options.beams).tolist()
        left = self._active.drop(done, self.call.prompt.ids.device)
        if left is not None:
            self._state.keep(left)

    def _follow(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        """Let the tokens that processors and criteria see follow the beams."""
        if self.call.processors:
            self.call.processors.select(rows)
            self.call.processors.chosen(tokens.tolist())
        if self._keeps_ids:
            self._rows.select(rows)
            self._rows.append(tokens)

    def _ids(self) -> torch.Tensor:
        return self._rows.view.contiguous() if self.call.own_code else self._rows.view

    def _candidate_ids(self, parents: torch.Tensor, tokens: torch.Tensor, index: int) -> torch.Tensor:
        """Return the tokens of a group's candidates (B, C), each with its last, (B * C, S + 1)."""
        per_prompt = self.options.groups * self.options.beams
        first = torch.arange(len(parents))[:, None] * per_prompt + index * self.options.beams  # (B, 1)
        device = self._rows.view.device
        before = self._rows.view.index_select(0, (parents + first).flatten().to(device))
        return torch.cat((before, tokens.flatten()[:, None].to(device)), dim=1)  # (B * C, S), (B * C, 1)

    # --- the result ---------------------------------------------------------------------------------------------------

    def _packed(self) -> GenerateBeamDecoderOnlyOutput | torch.Tensor:
        found = self._best()
        check_answers(self.call.config, [(one.score, len(one.tokens)) for one, _ in found])
        longest = max(len(one.tokens) for one, _ in found)
        device, prompt = self.call.prompt.ids.device, self.call.prompt.ids
        new = [one.tokens + [self.options.fill] * (longest - len(one.tokens)) for one, _ in found]
        tokens = torch.tensor(new, dtype=prompt.dtype, device=device).view(len(found), longest)
        sequences = torch.cat((prompt.repeat_interleave(self.options.returned, dim=0), tokens), dim=1)
        if not self.call.config.return_dict_in_generate:
            return sequences
        rows = [[first + beam for beam in one.beams] + [-1] * (longest - len(one.beams)) for one, first in found]
        fields: dict[str, Any] = {name: tuple(values) for name, values in self._kept.items() if values}
        if self.call.keep_scores:
            fields["sequences_scores"] = torch.tensor([one.score for one, _ in found], device=device)
        return GenerateBeamDecoderOnlyOutput(
            sequences=sequences,
            beam_indices=torch.tensor(rows, dtype=torch.int32, device=device).view(len(found), longest),
            past_key_values=self._state.cache,
            **fields,
        )

    def _best(self) -> list[tuple[Hypothesis, int]]:
        """Return the texts of the result, each with the first row of its group in the model's batch."""
        options = self.options
        result: list[tuple[Hypothesis, int]] = []
        by_group = [group.best(min(options.returned, options.beams)) for group in self._groups]
        for prompt in range(self.call.rows):
            found: list[tuple[Hypothesis, int]] = []
            for index, texts in enumerate(by_group):
                first = (prompt * options.groups + index) * options.beams
                found.extend((text, first) for text in texts[prompt])
            found.sort(key=lambda one: -one[0].score)  # stable: of equal texts the earlier group's
            result.extend(found[: options.returned])
        return result


def draw(sums: torch.Tensor, count: int, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw `count` places of each row without replacement, with the probabilities softmax(sums).

    The winners of an exponential race are such a draw: what `torch.multinomial` does, with the same random numbers,
    without its checks of the probabilities.

    Args:
        sums: (B, M).
        count: How many; at most M.
        generator: Gives every row the same random numbers, so that a prompt's beams do not depend on the batch; None
            for the global source, one number for each probability.

    Returns:
        The sums at the places, NaN where a row is no distribution, and the places, both (B, count), winners first.
    """
    race = sums.softmax(dim=-1)
    if generator is None:
        noise = torch.empty_like(race).exponential_(1)
    else:
        noise = torch.empty(1, race.shape[1], device=generator.device).exponential_(1, generator=generator)
        noise = noise.clamp_(min=1e-30).to(race.device)
    best, places = race.div_(noise).topk(count, dim=-1)
    return sums.gather(1, places).masked_fill(best.isnan().all(dim=1, keepdim=True), torch.nan), places


def _with_group(scores: torch.Tensor, part: torch.Tensor, index: int, groups: int) -> torch.Tensor:
    """Return (R, V) scores with those of one group replaced by (B, K, V)."""
    changed = scores.clone()
    changed.view(part.shape[0], groups, *part.shape[1:])[:, index] = part  # (R, V) -> (B, G, K, V)
    return changed


def _to_host(values: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring (B, C) scores and places to the host in one go."""
    if values.device.type == "cpu":
        return values, places
    both = torch.stack((values.view(torch.int32).long(), places)).cpu()  # (2, B, C); the bits of the scores
    return both[0].int().view(torch.float32), both[1]
