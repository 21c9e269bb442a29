"""The record of an epoch, made by hand."""

from rayff.runs.metrics import EpochRecord

RECORD = EpochRecord(
    epoch=1,
    step=3,
    lr=0.1,
    train_loss=1.0,
    valid_accuracy=60.0,
    test_accuracy=50.0,
    last_valid_accuracy=55.0,
    last_test_accuracy=50.0,
    sip_first=0,
    sip_last=1,
    images_per_s=100.0,
    elapsed_s=2.0,
    layer_loss=[1.5, 0.5],
    layer_valid_accuracy=[40.0, 55.0],
    layer_test_accuracy=[35.0, 50.0],
    stage_busy=[0.5, 0.9],
    cuts=[1],
    sip_accuracy=[[40.0, 60.0], [0.0, 55.0]],
)
"""Two layers, each a stage."""
