"""Is a report one file that needs nothing beside it, and does it show text as text?"""

import base64
import io
import re

from PIL import Image

from policies import page


def test_a_page_holds_its_pictures_and_escapes_its_text(tmp_path):
    with page.plot(3, 2, columns=2) as drawn:
        for axes in drawn.axes[0]:
            axes.plot([0, 1], [0, 1])
    parts = [
        page.heading("a < b"),
        page.figure(drawn.png, "5 > 4 & so on"),
        page.picture(tmp_path / "loss.png", "never drawn"),
        page.table(("encoder", "rate"), [("<b>toto</b>", 0.5)]),
        page.bullets(["x < y"]),
    ]
    page.write_page(tmp_path / "report.html", "T & U", "sub", parts)
    text = (tmp_path / "report.html").read_text()
    assert "a &lt; b" in text and "5 &gt; 4 &amp; so on" in text and "&lt;b&gt;toto" in text and "x &lt; y" in text
    assert "loss.png was not made" in text
    assert "http" not in text and not re.search(r'(src|href)="(?!data:)', text)
    (encoded,) = re.findall(r"data:image/png;base64,([^\"]+)", text)
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).width > 300
