"""The official model written out in numpy float64, on the official parameter paths.

It follows ``scenic/projects/mbt/model.py``, and for a mean per modality its AV-MAE fork; it shares
no code with ``mbt_fast``.
"""

import numpy as np


def layer_norm(x, params, path):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * params[f"{path}/scale"] + params[f"{path}/bias"]


def attention(x, params, path):
    def part(name):
        kernel, bias = params[f"{path}/{name}/kernel"], params[f"{path}/{name}/bias"]
        return np.einsum("bnc,chd->bhnd", x, kernel) + bias[:, None]

    query, key, value = part("query"), part("key"), part("value")
    scores = query @ np.swapaxes(key, -1, -2) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("bhnd,hdc->bnc", weights @ value, params[f"{path}/out/kernel"])
    return mixed + params[f"{path}/out/bias"]


def mlp(x, params, path):
    x = x @ params[f"{path}/Dense_0/kernel"] + params[f"{path}/Dense_0/bias"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x @ params[f"{path}/Dense_1/kernel"] + params[f"{path}/Dense_1/bias"]


def block(x, params, layer, owner):
    path = f"Transformer/encoderblock_{layer}{owner}"
    x = x + attention(
        layer_norm(x, params, f"{path}/LayerNorm_0"),
        params,
        f"{path}/MultiHeadDotProductAttention_0",
    )
    return x + mlp(layer_norm(x, params, f"{path}/LayerNorm_1"), params, f"{path}/MlpBlock_0")


def embed(x, modality, params, config):
    """Tokens ``[B, N, C]``: patches in the order time, height, width; then positions."""
    suffix = "" if modality == "rgb" else f"_{modality}"
    kernel, bias = params[f"embedding{suffix}/kernel"], params[f"embedding{suffix}/bias"]
    if modality == "rgb" and config["method"] == "temporal_sampling":
        asked, frames = config["n_sampled_frames"], x.shape[1]
        step = frames / (asked + 1) if asked < frames else 1
        times = np.arange(step if asked < frames else 0, frames, step, dtype=np.float32)
        x = x[:, np.minimum(np.round(times).astype(int), frames - 1)]
        kernel = kernel[None]  # [1, height, width, in, out]
    if modality != "rgb":
        x, kernel = x[:, None], kernel[None]
    t, h, w = kernel.shape[:3]
    batch, frames, height, width, channels = x.shape
    x = x.reshape(batch, frames // t, t, height // h, h, width // w, w, channels)
    tokens = np.einsum("bTtHhWwi,thwic->bTHWc", x, kernel) + bias
    tokens = tokens.reshape(batch, -1, kernel.shape[-1])
    if config["classifier"] == "token":
        alone = modality == "rgb" or len(config["modalities"]) == 1
        cls = params["cls" if alone else f"cls{modality}"]
        tokens = np.concatenate([np.repeat(cls, batch, 0), tokens], 1)
    return tokens + params[f"Transformer/posembed_input{suffix}/pos_embedding"]


def encode(streams, params, config):
    """Streams after all layers and the shared norm, without bottlenecks."""
    names, slots = config["modalities"], None
    owner = {m: "" if m == "rgb" or config["share_encoder"] else f"_{m}" for m in names}
    bottleneck = config["fusion"] == "bottleneck"
    if bottleneck and len(names) > 1:
        slots = np.repeat(params["bottleneck"], len(streams[names[0]]), 0)
    for layer in range(config["num_layers"]):
        lengths = {m: streams[m].shape[1] for m in names}
        if layer < config["fusion_layer"] or len(names) == 1:
            streams = {m: block(streams[m], params, layer, owner[m]) for m in names}
        elif bottleneck:
            joined = {m: np.concatenate([streams[m], slots], 1) for m in names}
            joined = {m: block(joined[m], params, layer, owner[m]) for m in names}
            streams = {m: joined[m][:, : lengths[m]] for m in names}
            slots = np.mean([joined[m][:, lengths[m] :] for m in names], 0)
        else:
            others = {m: [streams[o] for o in names if o != m] for m in names}
            joined = {m: np.concatenate([*others[m], streams[m]], 1) for m in names}
            joined = {m: block(joined[m], params, layer, owner[m]) for m in names}
            streams = {m: joined[m][:, -lengths[m] :] for m in names}
    return {m: layer_norm(x, params, "Transformer/encoder_norm") for m, x in streams.items()}


def logits(inputs, params, config, valid=None):
    """Logits ``[B, classes]`` of inputs with channels last; ``valid``: own tokens by modality."""
    streams = {m: embed(inputs[m], m, params, config) for m in config["modalities"]}
    streams = {m: x[:, : (valid or {}).get(m)] for m, x in streams.items()}
    streams = encode(streams, params, config)
    if config["classifier"] == "token":
        read = [x[:, 0] for x in streams.values()]
    elif config["classifier"] == "gap":
        read = [np.concatenate(list(streams.values()), 1).mean(1)]
    else:
        read = [x.mean(1) for x in streams.values()]
    kernel, bias = params["output_projection/kernel"], params["output_projection/bias"]
    return np.mean([x @ kernel + bias for x in read], 0)


def parameters(config, sizes, patches, width=16, heads=2, mlp_dim=24, classes=5, slots=4):
    """Random official parameters; sizes are ``rgb`` (frames read, h, w), ``spectrogram`` (t, m)."""
    rng = np.random.default_rng(0)
    names, params = config["modalities"], {}

    def draw(path, *shape):
        params[path] = 0.3 * rng.standard_normal(shape)

    for m in names:
        suffix = "" if m == "rgb" else f"_{m}"
        patch = patches[m]
        tokens = int(np.prod([s // p for s, p in zip(sizes[m], patch, strict=True)]))
        if m == "rgb" and config["method"] == "temporal_sampling":
            patch = patch[1:]
        if config["classifier"] == "token":
            draw("cls" if m == "rgb" or len(names) == 1 else f"cls{m}", 1, 1, width)
            tokens += 1
        draw(f"embedding{suffix}/kernel", *patch, 3, width)
        draw(f"embedding{suffix}/bias", width)
        draw(f"Transformer/posembed_input{suffix}/pos_embedding", 1, tokens, width)
    if config["fusion"] == "bottleneck" and len(names) > 1:
        draw("bottleneck", 1, slots, width)
    owners = [""] if config["share_encoder"] else ["" if m == "rgb" else f"_{m}" for m in names]
    for path in (
        f"Transformer/encoderblock_{n}{o}" for n in range(config["num_layers"]) for o in owners
    ):
        for norm in ("LayerNorm_0", "LayerNorm_1"):
            draw(f"{path}/{norm}/scale", width)
            draw(f"{path}/{norm}/bias", width)
        for part in ("query", "key", "value"):
            draw(
                f"{path}/MultiHeadDotProductAttention_0/{part}/kernel", width, heads, width // heads
            )
            draw(f"{path}/MultiHeadDotProductAttention_0/{part}/bias", heads, width // heads)
        draw(f"{path}/MultiHeadDotProductAttention_0/out/kernel", heads, width // heads, width)
        draw(f"{path}/MultiHeadDotProductAttention_0/out/bias", width)
        draw(f"{path}/MlpBlock_0/Dense_0/kernel", width, mlp_dim)
        draw(f"{path}/MlpBlock_0/Dense_0/bias", mlp_dim)
        draw(f"{path}/MlpBlock_0/Dense_1/kernel", mlp_dim, width)
        draw(f"{path}/MlpBlock_0/Dense_1/bias", width)
    draw("Transformer/encoder_norm/scale", width)
    draw("Transformer/encoder_norm/bias", width)
    draw("output_projection/kernel", width, classes)
    draw("output_projection/bias", classes)
    return params
