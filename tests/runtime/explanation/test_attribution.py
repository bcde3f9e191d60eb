import numpy as np

from cxr_edge.runtime.explanation.attribution import Attribution, attribution_picture


def test_red_speaks_for_pneumonia_and_blue_against_it():
    values = np.zeros((224, 224), np.float32)
    values[50:80, 30:60], values[150:180, 150:180] = 1, -1
    attribution = Attribution(values, 0.0, 0.0, 1)
    picture = attribution_picture(np.full((448, 448), 120, np.uint8), attribution, "x").astype(int)[28:-44]
    scale = picture.shape[0] / 224
    for (row, column), more, less in (((65, 45), 0, 2), ((165, 165), 2, 0)):
        pixel = picture[round(row * scale), round(column * scale)]
        assert pixel[more] > pixel[less] + 100
    assert (picture[10, 10] == 120).all()


def test_a_bundle_without_a_gradient_file_says_how_to_make_it(cli, bundle, xray, tmp_path):
    code, _, err = cli("explain", "-m", bundle, xray, "-o", tmp_path, "--method", "ig")
    assert code == 2 and "cxr-edge export RUN" in err and "--file gradient.onnx" in err
    assert not list(tmp_path.glob("*.png"))
