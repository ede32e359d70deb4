import time
def test_a(tiny_sd, tiny_sdxl, tiny_controlnet):
    for t in (tiny_sd, tiny_sdxl, tiny_controlnet):
        print(type(t.pipe), sorted(p.name for p in t.folder.iterdir()))
