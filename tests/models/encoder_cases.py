"""Small encoders with the attributes and the arithmetic of other libraries'.

Names are those of timm 0.5 and 1.0, and of transformers 4 and 5. Attention is written out.
"""

import torch
from torch import nn

DIM, HEADS, HIDDEN, LAYERS = 48, 3, 72, 3
IMAGE = (3, 12, 8)
PATCHES = 6


def attention(query, key, value):
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return scores.softmax(dim=-1) @ value


def split(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join(x):
    return x.transpose(1, 2).flatten(2)


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


class TimmMlp(nn.Module):
    def __init__(self, drop=0.0, act=None):
        super().__init__()
        self.fc1 = nn.Linear(DIM, HIDDEN)
        self.act = act or nn.GELU()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(HIDDEN, DIM)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x):
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


class TimmAttention(nn.Module):
    def __init__(self, qkv_bias=True, qk_norm=False, scale_norm=False, drop=0.0, attn_drop=0.0):
        super().__init__()
        self.num_heads = HEADS
        self.qkv = nn.Linear(DIM, 3 * DIM, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(DIM // HEADS) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(DIM // HEADS) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = nn.LayerNorm(DIM) if scale_norm else nn.Identity()
        self.proj = nn.Linear(DIM, DIM)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x):
        query, key, value = (split(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        out = join(attention(self.q_norm(query), self.k_norm(key), value))
        return self.proj_drop(self.proj(self.norm(out)))


class TimmBlock(nn.Module):
    def __init__(self, eps=1e-6, scale=False, drop_path=0.0, drop=0.0, act=None, **attn):
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM, eps=eps)
        self.attn = TimmAttention(drop=drop, **attn)
        self.ls1 = LayerScale() if scale else nn.Identity()
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(DIM, eps=eps)
        self.mlp = TimmMlp(drop, act)
        self.ls2 = LayerScale() if scale else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x):
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class TimmPostNormBlock(TimmBlock):
    """timm's ``ResPostBlock``: the same names, another order."""

    def forward(self, x):
        x = x + self.drop_path1(self.norm1(self.attn(x)))
        return x + self.drop_path2(self.norm2(self.mlp(x)))


class PatchEmbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(IMAGE[0], DIM, kernel_size=4, stride=4)

    def forward(self, x):
        return self.proj(x).flatten(2).mT


class TimmViT(nn.Module):
    """timm 1.0, with a class token and ``registers`` more."""

    def __init__(self, layers=LAYERS, registers=0, block=TimmBlock, **options):
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.reg_token = nn.Parameter(torch.randn(1, registers, DIM))
        self.pos_embed = nn.Parameter(torch.randn(1, PATCHES, DIM))
        self.pos_drop = nn.Dropout(0.0)
        self.patch_drop = nn.Identity()
        self.norm_pre = nn.LayerNorm(DIM)
        self.blocks = nn.Sequential(*(block(**options) for _ in range(layers)))
        self.norm = nn.LayerNorm(DIM, eps=1e-6)
        self.head = nn.Linear(DIM, 10)

    def _pos_embed(self, x):
        extra = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token)]
        return self.pos_drop(torch.cat([*extra, x + self.pos_embed], dim=1))

    def forward_features(self, x):
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        return self.norm(self.blocks(x))

    def forward(self, x):
        return self.head(self.forward_features(x)[:, 0])


class TimmMlp05(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(DIM, HIDDEN)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(HIDDEN, DIM)
        self.drop = nn.Dropout(0.0)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class TimmAttention05(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads = HEADS
        self.qkv = nn.Linear(DIM, 3 * DIM)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(DIM, DIM)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x):
        parts = (split(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj_drop(self.proj(join(attention(*parts))))


class TimmBlock05(nn.Module):
    def __init__(self, drop_path):
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM)
        self.attn = TimmAttention05()
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(DIM)
        self.mlp = TimmMlp05()

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class TimmViT05(nn.Module):
    """timm 0.4 and 0.5: DeiT, one ``drop_path`` for both branches, no ``_pos_embed``."""

    def __init__(self, drop_path=0.0):
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.dist_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.pos_embed = nn.Parameter(torch.randn(1, PATCHES + 2, DIM))
        self.pos_drop = nn.Dropout(0.0)
        self.blocks = nn.Sequential(*(TimmBlock05(drop_path) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(DIM)

    def forward_features(self, x):
        extra = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.dist_token)]
        x = self.pos_drop(torch.cat([*extra, self.patch_embed(x)], dim=1) + self.pos_embed)
        return self.norm(self.blocks(x))


class Embeddings(nn.Module):
    """Hugging Face's AST: CLS and distillation token."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.distillation_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.patch_embeddings = PatchEmbed()
        self.position_embeddings = nn.Parameter(torch.randn(1, PATCHES + 2, DIM))
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        extra = [t.expand(len(x), -1, -1) for t in (self.cls_token, self.distillation_token)]
        tokens = torch.cat([*extra, self.patch_embeddings(x)], dim=1)
        return self.dropout(tokens + self.position_embeddings)


class SelfAttention4(nn.Module):
    def __init__(self, qkv_bias, dropout):
        super().__init__()
        self.num_attention_heads = HEADS
        self.query = nn.Linear(DIM, DIM, bias=qkv_bias)
        self.key = nn.Linear(DIM, DIM, bias=qkv_bias)
        self.value = nn.Linear(DIM, DIM, bias=qkv_bias)
        self.dropout_prob = dropout

    def forward(self, x):
        parts = (split(linear(x), HEADS) for linear in (self.query, self.key, self.value))
        return join(attention(*parts)), None


class SelfOutput4(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(DIM, DIM)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x, input_tensor):
        return self.dropout(self.dense(x))


class Attention4(nn.Module):
    def __init__(self, qkv_bias, dropout):
        super().__init__()
        self.attention = SelfAttention4(qkv_bias, dropout)
        self.output = SelfOutput4()

    def forward(self, x):
        return (self.output(self.attention(x)[0], x),)


class Intermediate4(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(DIM, HIDDEN)
        self.intermediate_act_fn = nn.functional.gelu

    def forward(self, x):
        return self.intermediate_act_fn(self.dense(x))


class Output4(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(HIDDEN, DIM)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x, input_tensor):
        return self.dropout(self.dense(x)) + input_tensor


class Layer4(nn.Module):
    def __init__(self, qkv_bias=True, dropout=0.0):
        super().__init__()
        self.attention = Attention4(qkv_bias, dropout)
        self.intermediate = Intermediate4()
        self.output = Output4()
        self.layernorm_before = nn.LayerNorm(DIM, eps=1e-12)
        self.layernorm_after = nn.LayerNorm(DIM, eps=1e-12)

    def forward(self, x, head_mask=None):
        y = self.attention(self.layernorm_before(x))[0] + x
        return (self.output(self.intermediate(self.layernorm_after(y)), y),)


class Encoder4(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.layer = nn.ModuleList(Layer4(**options) for _ in range(LAYERS))


class HuggingFace4(nn.Module):
    """transformers 4; AST and ViT share these names. Layers return tuples."""

    base_model_prefix = "vit"

    def __init__(self, **options):
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = Encoder4(**options)
        self.layernorm = nn.LayerNorm(DIM, eps=1e-12)

    def forward(self, x):
        x = self.embeddings(x)
        for layer in self.encoder.layer:
            x = layer(x)[0]
        return self.layernorm(x)


class HuggingFace4Classifier(nn.Module):
    """``ViTForImageClassification``: the encoder under its prefix."""

    base_model_prefix = "vit"

    def __init__(self):
        super().__init__()
        self.vit = HuggingFace4()
        self.classifier = nn.Linear(DIM, 10)


class Attention5(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_attention_heads = HEADS
        self.attention_dropout = 0.0
        self.q_proj = nn.Linear(DIM, DIM)
        self.k_proj = nn.Linear(DIM, DIM)
        self.v_proj = nn.Linear(DIM, DIM)
        self.o_proj = nn.Linear(DIM, DIM)

    def forward(self, x):
        parts = (split(linear(x), HEADS) for linear in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(join(attention(*parts))), None


class Mlp5(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(DIM, HIDDEN)
        self.activation_fn = nn.GELU()
        self.fc2 = nn.Linear(HIDDEN, DIM)

    def forward(self, x):
        return self.fc2(self.activation_fn(self.fc1(x)))


class Layer5(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention5()
        self.layernorm_before = nn.LayerNorm(DIM, eps=1e-12)
        self.layernorm_after = nn.LayerNorm(DIM, eps=1e-12)
        self.mlp = Mlp5()
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        y = self.dropout(self.attention(self.layernorm_before(x))[0]) + x
        return self.dropout(self.mlp(self.layernorm_after(y))) + y


class HuggingFace5(nn.Module):
    """transformers 5; AST and ViT share these names."""

    base_model_prefix = "vit"

    def __init__(self):
        super().__init__()
        self.embeddings = Embeddings()
        self.layers = nn.ModuleList(Layer5() for _ in range(LAYERS))
        self.layernorm = nn.LayerNorm(DIM, eps=1e-12)

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
