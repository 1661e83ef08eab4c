"""Write a model card in Markdown beside each encoder that the package ships, from its file and its JSON:

    python scripts/shipped_cards.py
"""
import json
import shutil
import tempfile
from pathlib import Path

from isd_nb.engine.model_card import model_card

SHIPPED = Path(__file__).parent.parent / "isd_nb" / "shipped"


def shipped_card(weights: Path) -> str:
    "The model card of a shipped encoder: that of its run, with the name to load it by and the note of its JSON."
    about = json.loads(weights.with_suffix(".json").read_text())
    with tempfile.TemporaryDirectory() as folder:  # a run's directory as `model_card` reads it
        shutil.copy(weights, Path(folder) / "encoder.safetensors")
        (Path(folder) / "summary.json").write_text(json.dumps(about))
        card = model_card(folder, about["licence"])
    card = card.replace('load_encoder("encoder.safetensors", which=', f'load_encoder("shipped:{weights.stem}", which=')
    what = f"{about['note']}\n\nMade by `{about['command']}`."
    return card.replace("\n\n## Use\n", f"\n\n{what}\n\n## Use\n", 1)


if __name__ == "__main__":
    for weights in sorted(SHIPPED.glob("*.safetensors")):
        weights.with_suffix(".md").write_text(shipped_card(weights), encoding="utf-8")
        print(weights.with_suffix(".md"))
