import subprocess
import sys


def test_cognition_needs_no_heavy_library() -> None:
    code = (
        "import sys; from cogalign.cognition import anatomy, keywords, report, taxonomy, templates; "
        "print([name for name in ('torch', 'numpy', 'PIL', 'transformers', 'lightning') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
