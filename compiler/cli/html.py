"""One self-contained HTML page about a model or an artifact: no script, no font, no link to anywhere."""

from html import escape

from . import text

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6b7c; --line: #d9dfe6; --bar: #3a7bd5;
  --kept: #2f9e6e; --page: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ee; --soft: #93a1b1; --line: #303a46;
  --bar: #5b9cf0; --kept: #46bd8a; --page: #12161b; --card: #1a2027; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 70rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p.sub { color: var(--soft); margin: .2rem 0 1.5rem; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .8rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.25rem; } .card span { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: .85rem; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.name { overflow-wrap: anywhere; }
code { font: .85em ui-monospace, monospace; overflow-wrap: anywhere; }
.bar { height: .6rem; background: var(--line); border-radius: 3px; min-width: 8rem; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--bar); } .bar.sparse i { background: var(--kept); }
"""


def page(found: dict) -> str:
    """The page as text; ``found`` is what ``inspect --json`` prints."""
    title = escape(text.visible(found["file"].rsplit("/", 1)[-1]))
    body = _artifact(found) if found["kind"] == "artifact" else _model(found)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _model(found: dict) -> list[str]:
    opsets = ", ".join(f"{domain} {version}" for domain, version in found["opsets"].items())
    by = f" by {found['producer']}" if found["producer"] else ""
    sparse = sum(layer["pattern"] != "dense" for layer in found["layers"])
    ops = list(found["ops"].items())
    most = max([count for _, count in ops], default=1)
    body = [
        f'<p class="sub">ONNX model{escape(by)}, opsets {escape(opsets)}</p>',
        _cards(
            (text.size(found["bytes"]), "file"),
            (f"{found['parameters']:,}", "parameters"),
            (str(sum(found["ops"].values())), "operators"),
            (f"{sparse} of {len(found['layers'])}", "weight layers with an N:M pattern"),
        ),
        *_ports(found),
        "<h2>Operators</h2>",
        _table(["operator", "#count", ""], [[escape(op), str(n), _bar(n / most)] for op, n in ops]),
    ]
    if found["layers"]:
        largest = max(layer["dense_bytes"] for layer in found["layers"])
        rows = []
        for layer in found["layers"]:
            note = f"<br><small>{escape(text.visible(layer['note']))}</small>" if layer["note"] else ""
            pattern = layer["pattern"]
            rows.append(
                [
                    escape(text.visible(layer["name"])) + note,
                    escape(layer["op"]),
                    text.shape(layer["shape"]),
                    text.size(layer["dense_bytes"]),
                    _bar(layer["dense_bytes"] / largest, pattern != "dense"),
                    f"{100 * layer['zeros']:.1f} %",
                    escape(pattern),
                ]
            )
        header = ["layer", "op", "weight", "#size", "", "#zeros", "pattern"]
        body += ["<h2>Layers with weights</h2>", _table(header, rows)]
    return body


def _artifact(found: dict) -> list[str]:
    errors = found["receipt"].get("max_error", {})
    worst = max((e["max_rel_to_scale"] for e in errors.values()), default=None)
    body = [
        f'<p class="sub">sparsec artifact for {escape(text.machines(found))}; '
        f"sparsec {escape(found['sparsec_version'])}, "
        f"TVM {escape(found['tvm_version'])}; passes: <code>{escape(found['passes'] or 'none')}</code></p>",
        _cards(
            (text.size(found["bytes"]), "file"),
            (text.size(found["weights_size"]), "weights"),
            (text.size(found["arena_size"]), "arena"),
            ("not checked" if worst is None else f"{worst:.1e}", "error against ONNX Runtime, of scale"),
        ),
        *_ports(found),
    ]
    if found["layers"]:
        largest = max(max(x["dense_bytes"], x["packed_bytes"]) for x in found["layers"]) or 1
        rows = [
            [
                escape(text.visible(x["name"])),
                escape(x["op"]),
                escape(x["pattern"]),
                f"<code>{escape(x['kernel'])}</code>",
                text.size(x["dense_bytes"]),
                text.size(x["packed_bytes"]),
                _bar(x["packed_bytes"] / largest, x["packed_bytes"] < x["dense_bytes"]),
            ]
            for x in found["layers"]
        ]
        header = ["layer", "op", "pattern", "kernel", "#dense", "#packed", ""]
        body += ["<h2>Layers</h2>", _table(header, rows)]
    rows = [
        [escape(name), text.size(m["size"]), f"<code>{escape(m['sha256'])}</code>"]
        for name, m in sorted(found["members"].items())
    ]
    source = ["source model", "", f"<code>{escape(found['source_sha256'])}</code>"]
    return [*body, "<h2>Members</h2>", _table(["member", "#size", "SHA-256"], [*rows, source])]


def _ports(found: dict) -> list[str]:
    rows = []
    for side in ("inputs", "outputs", "states"):
        for port in found.get(side, ()):  # a model has no states yet
            dims = " x ".join(escape(text.visible(str(d))) for d in port["dims"]) or "scalar"
            rows.append([side[:-1], escape(text.visible(port["name"])), escape(port["dtype"]), dims])
    return ["<h2>Inputs and outputs</h2>", _table(["", "name", "dtype", "shape"], rows)]


def _cards(*pairs: tuple[str, str]) -> str:
    cards = (f'<div class="card"><b>{escape(v)}</b><span>{escape(name)}</span></div>' for v, name in pairs)
    return f'<div class="cards">{"".join(cards)}</div>'


def _bar(share: float, sparse: bool = False) -> str:
    return f'<div class="bar{" sparse" if sparse else ""}"><i style="width:{100 * share:.1f}%"></i></div>'


def _table(header: list[str], rows: list[list[str]]) -> str:
    """``rows`` are HTML already; a column whose title begins with ``#`` holds numbers."""
    kinds = [' class="n"' if title.startswith("#") else "" for title in header]
    head = "".join(f"<th{kind}>{t.lstrip('#')}</th>" for t, kind in zip(header, kinds, strict=True))
    lines = []
    for row in rows:
        cells = "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True))
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n' + "\n".join(lines) + "\n</table></div>"
