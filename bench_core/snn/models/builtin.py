"""The built-in models, registered through the same hook as any plugin's."""

from bench_core.markers import hookimpl
from bench_core.snn.models.base import Model
from bench_core.snn.models.resnet import ResNet8, ResNet18, ResNet19, ResNet20, ResNet20Seenn, ResNet34
from bench_core.snn.models.sew_resnet import SewResNet34
from bench_core.snn.models.small_conv import SmallConv, SmallConvDeep
from bench_core.snn.models.vgg import Vgg16, VggSnn


@hookimpl
def bench_models() -> list[Model]:
    """Return the built-in models."""
    return [
        SmallConv(),
        SmallConvDeep(),
        ResNet8(),
        ResNet18(),
        ResNet19(),
        ResNet20(),
        ResNet20Seenn(),
        ResNet34(),
        SewResNet34(),
        Vgg16(),
        VggSnn(),
    ]
