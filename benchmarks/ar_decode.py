"""Codes a second of the autoregressive model: its own decoding, that of transformers, and decoding without a cache.

    python benchmarks/ar_decode.py [--layers 6] [--batches 1 16] [--codes 200] [--rounds 3] [--uncached] [--greedy]

The published width (1024, 16 heads, 8194 codes) with random weights and fewer layers than the published 30, packed as
`dlas speak` packs them. The peer is Hugging Face's
`GPT2LMHeadModel.generate` with its cache, on the same weights, the same prompt (a voice, 60 tokens of text, the start) and the
same settings of sampling (temperature 0.8, top-p 0.8, top-k 50, repetition penalty 2); it takes part where transformers can be
imported. First both decode greedily, and must give the same codes. No code stops. One thread; ways take turns, and the order
changes each round; processor time counts. Prints one JSON line for each batch: medians, and the median of the paired ratios.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.archs.speech.unified_voice import UnifiedVoice
from dlas.layers.packed_linear import pack_linear_layers
from dlas.layers.token_sampling import TokenSampling

PUBLISHED = {"model_dim": 1024, "heads": 16, "max_text_tokens": 402, "max_mel_tokens": 604, "number_text_tokens": 255}
TOKENS = 60  # of the text


def build(layers: int) -> UnifiedVoice:
    """The network, whose stop token is never drawn."""
    torch.manual_seed(0)
    network = create_network({"which_model": "unified_voice2", **PUBLISHED, "layers": layers})
    assert isinstance(network, UnifiedVoice)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(3.0)  # such that codes differ
        for layer in network.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.weight.fill_(1.0)
        network.mel_head.bias[network.stop_mel] = -1e9
    return network.eval().requires_grad_(False)


def peer_of(network: UnifiedVoice, prompt: int, codes: int) -> Any:
    """The same network as transformers' class; the vectors of positions behind the prompt are those of codes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    width = network.gpt.channels
    config = GPT2Config(
        vocab_size=network.mel_head.out_features,
        n_positions=prompt + codes,
        n_embd=width,
        n_layer=len(network.gpt.h),
        n_head=network.gpt.heads,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    peer = GPT2LMHeadModel(config).eval().requires_grad_(False)
    peer.transformer.load_state_dict(network.gpt.state_dict(), strict=False)
    peer.transformer.wte.weight.copy_(network.mel_embedding.weight)
    peer.transformer.wpe.weight.zero_()
    peer.transformer.wpe.weight[prompt:] = network.mel_pos_embedding.emb.weight[1 : codes + 1]
    peer.lm_head = nn.Sequential(network.final_norm, network.mel_head)
    return peer


def uncached(network: UnifiedVoice, prompt: Tensor, uniforms: Tensor, sampling: TokenSampling) -> Tensor:
    """Decodes by whole forwards over all that is there."""
    candidates, length = uniforms.shape
    inputs = prompt.expand(candidates, -1, -1)
    seen = torch.zeros(candidates, network.mel_head.out_features, dtype=torch.bool)
    seen[:, [1, network.start_mel]] = True
    codes = []
    for place in range(length):
        logits = network.mel_head(network.final_norm(network.gpt(inputs)[:, -1]))
        codes.append(sampling.draw(logits, seen, uniforms[:, place]))
        seen.scatter_(1, codes[-1][:, None], True)
        embedded = network.mel_embedding(codes[-1]) + network.mel_pos_embedding.emb.weight[place + 1]
        inputs = torch.cat((inputs, embedded[:, None]), dim=1)
    return torch.stack(codes, dim=1)


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--codes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--uncached", action="store_true", help="also without a cache, which takes minutes")
    parser.add_argument("--greedy", action="store_true", help="take the most likely code: without the cost of sampling")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = build(arguments.layers)
    voice, text = torch.randn(1, PUBLISHED["model_dim"]), torch.randint(3, 255, (1, TOKENS))
    embedded, _ = network._text(text)
    start = network.mel_embedding.weight[network.start_mel] + network.mel_pos_embedding.emb.weight[0]
    prompt = torch.cat((voice[:, None], embedded, start[None, None]), dim=1)
    greedy = TokenSampling(temperature=0.0, repetition_penalty=2.0)
    drawn = greedy if arguments.greedy else TokenSampling(repetition_penalty=2.0, temperature=0.8, top_k=50, top_p=0.8)

    def own(batch: int, codes: int, sampling: TokenSampling) -> Tensor:
        return packed.generate(voice, text, torch.rand(batch, codes), sampling)

    def whole(batch: int, codes: int, sampling: TokenSampling) -> Tensor:
        return uncached(network, prompt, torch.rand(batch, codes), sampling)

    ways: dict[str, Callable[[int, int, TokenSampling], Tensor]] = {"own": own}
    if arguments.uncached:
        ways["uncached"] = whole
    try:
        peer = peer_of(network, prompt.shape[1], arguments.codes)
    except ImportError:
        print("transformers cannot be imported: it does not take part", file=sys.stderr)
    else:

        def transformers(batch: int, codes: int, sampling: TokenSampling) -> Tensor:
            # The tokens of the prompt, which only the repetition penalty reads: 1s, as where embeddings are given.
            given = torch.ones(1, prompt.shape[1], dtype=torch.long)
            given[0, -1] = network.start_mel
            options = {"do_sample": sampling.temperature > 0, "repetition_penalty": sampling.repetition_penalty}
            if sampling.temperature > 0:
                options |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
            return peer.generate(
                given.expand(batch, -1),
                inputs_embeds=prompt.expand(batch, -1, -1),
                max_new_tokens=codes,
                use_cache=True,
                pad_token_id=network.stop_mel,
                **options,
            )[:, -codes:]

        ways["transformers"] = transformers

    packed = pack_linear_layers(copy.deepcopy(network))

    with torch.inference_mode():
        expected = whole(1, 20, greedy)
        for name, way in ways.items():
            assert torch.equal(way(2, 20, greedy)[1:], expected), f"{name} gives other codes"
        for batch in arguments.batches:
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(arguments.rounds):
                for name in list(ways) if number % 2 else reversed(ways):
                    begun = time.process_time()
                    ways[name](batch, arguments.codes, drawn)
                    seconds[name].append(time.process_time() - begun)
            line: dict[str, Any] = {"batch": batch, "layers": arguments.layers, "codes": arguments.codes}
            for name, spent in seconds.items():
                line[f"{name}_codes_per_s"] = round(batch * arguments.codes / statistics.median(spent), 1)
                if name != "own":
                    ratios = [theirs / ours for theirs, ours in zip(spent, seconds["own"], strict=True)]
                    line[f"times_{name}"] = round(statistics.median(ratios), 2)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
