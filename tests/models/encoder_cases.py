"""Small encoders with the attributes and the arithmetic of other libraries'.

Names are those of timm 0.5 and 1.0, and of transformers 4 and 5. Attention is written out.
"""

import torch
from torch import nn

DIM, HEADS, HIDDEN, LAYERS = 48, 3, 72, 3
IMAGE = (3, 12, 8)
PATCHES = 6


class Parts(nn.Module):
    """Has the parts that it is given, by name."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def attend(query, key, value, heads=HEADS):
    """Attention of products ``[B, S, C]``."""
    parts = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    query, key, value = parts
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)


def linear(inner=DIM, outer=DIM, bias=True):
    return nn.Linear(inner, outer, bias=bias)


def tokens(count=1):
    return nn.Parameter(torch.randn(1, count, DIM))


def join(extra, x):
    """Extra tokens before those of every example."""
    return torch.cat([*(token.expand(x.shape[0], -1, -1) for token in extra), x], dim=1)


class DropPath(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.drop_prob = rate

    def forward(self, x):
        if not self.training:
            return x
        keep = torch.rand(x.shape[0], 1, 1) >= self.drop_prob
        return x * keep / (1 - self.drop_prob)


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(DIM))

    def forward(self, x):
        return x * self.gamma


class PatchEmbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(IMAGE[0], DIM, kernel_size=4, stride=4)

    def forward(self, x):
        return self.proj(x).flatten(2).mT


class TimmMlp(Parts):
    def __init__(self, drop=0.0, act=None):
        super().__init__(
            fc1=linear(DIM, HIDDEN), act=act or nn.GELU(), drop1=nn.Dropout(drop),
            fc2=linear(HIDDEN, DIM), drop2=nn.Dropout(drop),
        )  # fmt: skip

    def forward(self, x):
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


class TimmAttention(Parts):
    def __init__(self, qkv_bias=True, qk_norm=False, scale_norm=False, drop=0.0, attn_drop=0.0):
        q_norm, k_norm = (
            nn.LayerNorm(DIM // HEADS) if qk_norm else nn.Identity() for _ in range(2)
        )
        norm = nn.LayerNorm(DIM) if scale_norm else nn.Identity()
        super().__init__(
            num_heads=HEADS, qkv=linear(DIM, 3 * DIM, qkv_bias), q_norm=q_norm, k_norm=k_norm,
            attn_drop=nn.Dropout(attn_drop), norm=norm, proj=linear(), proj_drop=nn.Dropout(drop),
        )  # fmt: skip

    def forward(self, x):
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        query, key = (
            norm(t.unflatten(-1, (self.num_heads, -1))).flatten(2)
            for norm, t in ((self.q_norm, query), (self.k_norm, key))
        )
        return self.proj_drop(self.proj(self.norm(attend(query, key, value, self.num_heads))))


class TimmBlock(Parts):
    def __init__(self, eps=1e-6, scale=False, drop_path=0.0, drop=0.0, act=None, **attn):
        scales, drops = (
            [kind() if wanted else nn.Identity() for _ in range(2)]
            for kind, wanted in ((LayerScale, scale), (lambda: DropPath(drop_path), drop_path))
        )
        super().__init__(
            norm1=nn.LayerNorm(DIM, eps=eps), attn=TimmAttention(drop=drop, **attn),
            ls1=scales[0], drop_path1=drops[0], norm2=nn.LayerNorm(DIM, eps=eps),
            mlp=TimmMlp(drop, act), ls2=scales[1], drop_path2=drops[1],
        )  # fmt: skip

    def forward(self, x):
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class TimmPostNormBlock(TimmBlock):
    """timm's ``ResPostBlock``: the same names, another order."""

    def forward(self, x):
        x = x + self.drop_path1(self.norm1(self.attn(x)))
        return x + self.drop_path2(self.norm2(self.mlp(x)))


class TimmViT(Parts):
    """timm 1.0, with a class token and ``registers`` more."""

    def __init__(self, layers=LAYERS, registers=0, block=TimmBlock, **options):
        super().__init__(
            patch_embed=PatchEmbed(), cls_token=tokens(), reg_token=tokens(registers),
            pos_embed=tokens(PATCHES), pos_drop=nn.Dropout(0.0), patch_drop=nn.Identity(),
            norm_pre=nn.LayerNorm(DIM),
            blocks=nn.Sequential(*(block(**options) for _ in range(layers))),
            norm=nn.LayerNorm(DIM, eps=1e-6), head=linear(DIM, 10),
        )  # fmt: skip

    def _pos_embed(self, x):
        return self.pos_drop(join([self.cls_token, self.reg_token], x + self.pos_embed))

    def forward_features(self, x):
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        return self.norm(self.blocks(x))

    def forward(self, x):
        return self.head(self.forward_features(x)[:, 0])


class TimmMlp05(Parts):
    def __init__(self):
        super().__init__(
            fc1=linear(DIM, HIDDEN), act=nn.GELU(approximate="tanh"), fc2=linear(HIDDEN, DIM),
            drop=nn.Dropout(0.0),
        )  # fmt: skip

    def forward(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class TimmAttention05(Parts):
    def __init__(self):
        super().__init__(
            num_heads=HEADS, qkv=linear(DIM, 3 * DIM), attn_drop=nn.Dropout(0.0), proj=linear(),
            proj_drop=nn.Dropout(0.0),
        )  # fmt: skip

    def forward(self, x):
        return self.proj_drop(self.proj(attend(*self.qkv(x).chunk(3, dim=-1))))


class TimmBlock05(Parts):
    def __init__(self, drop_path):
        super().__init__(
            norm1=nn.LayerNorm(DIM), attn=TimmAttention05(), drop_path=DropPath(drop_path),
            norm2=nn.LayerNorm(DIM), mlp=TimmMlp05(),
        )  # fmt: skip

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class TimmViT05(Parts):
    """timm 0.4 and 0.5: DeiT, one ``drop_path`` for both branches, no ``_pos_embed``."""

    def __init__(self, drop_path=0.0):
        super().__init__(
            patch_embed=PatchEmbed(), cls_token=tokens(), dist_token=tokens(),
            pos_embed=tokens(PATCHES + 2), pos_drop=nn.Dropout(0.0),
            blocks=nn.Sequential(*(TimmBlock05(drop_path) for _ in range(LAYERS))),
            norm=nn.LayerNorm(DIM),
        )  # fmt: skip

    def forward_features(self, x):
        x = join([self.cls_token, self.dist_token], self.patch_embed(x)) + self.pos_embed
        return self.norm(self.blocks(self.pos_drop(x)))


class Embeddings(Parts):
    """Hugging Face's AST: CLS and distillation token."""

    def __init__(self):
        super().__init__(
            cls_token=tokens(), distillation_token=tokens(), patch_embeddings=PatchEmbed(),
            position_embeddings=tokens(PATCHES + 2), dropout=nn.Dropout(0.0),
        )  # fmt: skip

    def forward(self, x):
        x = join([self.cls_token, self.distillation_token], self.patch_embeddings(x))
        return self.dropout(x + self.position_embeddings)


class SelfAttention4(Parts):
    def forward(self, x):
        return attend(self.query(x), self.key(x), self.value(x)), None


class SelfOutput4(Parts):
    def forward(self, x, input_tensor):
        return self.dropout(self.dense(x))


class Attention4(Parts):
    def __init__(self, qkv_bias, dropout):
        projections = {name: linear(bias=qkv_bias) for name in ("query", "key", "value")}
        super().__init__(
            attention=SelfAttention4(
                num_attention_heads=HEADS, dropout_prob=dropout, **projections
            ),
            output=SelfOutput4(dense=linear(), dropout=nn.Dropout(0.0)),
        )

    def forward(self, x):
        return (self.output(self.attention(x)[0], x),)


class Intermediate4(Parts):
    def forward(self, x):
        return self.intermediate_act_fn(self.dense(x))


class Output4(Parts):
    def forward(self, x, input_tensor):
        return self.dropout(self.dense(x)) + input_tensor


class Layer4(Parts):
    def __init__(self, qkv_bias=True, dropout=0.0):
        super().__init__(
            attention=Attention4(qkv_bias, dropout),
            intermediate=Intermediate4(
                dense=linear(DIM, HIDDEN), intermediate_act_fn=nn.functional.gelu
            ),
            output=Output4(dense=linear(HIDDEN, DIM), dropout=nn.Dropout(0.0)),
            layernorm_before=nn.LayerNorm(DIM, eps=1e-12),
            layernorm_after=nn.LayerNorm(DIM, eps=1e-12),
        )

    def forward(self, x, head_mask=None):
        y = self.attention(self.layernorm_before(x))[0] + x
        return (self.output(self.intermediate(self.layernorm_after(y)), y),)


class HuggingFace4(Parts):
    """transformers 4; AST and ViT share these names. Layers return tuples."""

    base_model_prefix = "vit"

    def __init__(self, **options):
        layers = nn.ModuleList(Layer4(**options) for _ in range(LAYERS))
        super().__init__(
            embeddings=Embeddings(), encoder=Parts(layer=layers),
            layernorm=nn.LayerNorm(DIM, eps=1e-12),
        )  # fmt: skip

    def forward(self, x):
        x = self.embeddings(x)
        for layer in self.encoder.layer:
            x = layer(x)[0]
        return self.layernorm(x)


class HuggingFace4Classifier(Parts):
    """``ViTForImageClassification``: the encoder under its prefix."""

    base_model_prefix = "vit"

    def __init__(self):
        super().__init__(vit=HuggingFace4(), classifier=linear(DIM, 10))


class Attention5(Parts):
    def __init__(self):
        projections = {f"{name}_proj": linear() for name in "qkvo"}
        super().__init__(num_attention_heads=HEADS, attention_dropout=0.0, **projections)

    def forward(self, x):
        return self.o_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x))), None


class Mlp5(Parts):
    def forward(self, x):
        return self.fc2(self.activation_fn(self.fc1(x)))


class Layer5(Parts):
    def __init__(self):
        super().__init__(
            attention=Attention5(),
            layernorm_before=nn.LayerNorm(DIM, eps=1e-12),
            layernorm_after=nn.LayerNorm(DIM, eps=1e-12),
            mlp=Mlp5(fc1=linear(DIM, HIDDEN), activation_fn=nn.GELU(), fc2=linear(HIDDEN, DIM)),
            dropout=nn.Dropout(0.0),
        )

    def forward(self, x):
        y = self.dropout(self.attention(self.layernorm_before(x))[0]) + x
        return self.dropout(self.mlp(self.layernorm_after(y))) + y


class HuggingFace5(Parts):
    """transformers 5; AST and ViT share these names."""

    base_model_prefix = "vit"

    def __init__(self):
        super().__init__(
            embeddings=Embeddings(), layers=nn.ModuleList(Layer5() for _ in range(LAYERS)),
            layernorm=nn.LayerNorm(DIM, eps=1e-12),
        )  # fmt: skip

    def forward(self, x):
        x = self.embeddings(x)
        for layer in self.layers:
            x = layer(x)
        return self.layernorm(x)


def torch_encoder(layers=LAYERS, dim=DIM, heads=HEADS, activation="gelu", **options):
    options = {"dropout": 0.0, "batch_first": True, "norm_first": True, **options}
    layer = nn.TransformerEncoderLayer(dim, heads, HIDDEN, activation=activation, **options)
    encoder = nn.TransformerEncoder(
        layer, layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False
    )
    for parameter in encoder.parameters():  # else all layers are equal, and biases zero
        nn.init.normal_(parameter, std=0.2)
    return encoder
