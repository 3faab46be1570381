"""The built-in data sets, registered through the same hook as any plugin's."""

from bench_core.data.base import Dataset
from bench_core.data.cifar import CIFAR10, CIFAR100
from bench_core.data.digits import Digits
from bench_core.data.fashion_mnist import FashionMNIST
from bench_core.data.imagenet import ImageNet, TinyImageNet
from bench_core.data.mnist import MNIST
from bench_core.data.recordings import CIFAR10DVS, NMNIST, CIFAR10DVSOriginal, DVSGesture, NCaltech101
from bench_core.data.saccades import SimulatedSaccades
from bench_core.markers import hookimpl


@hookimpl
def bench_datasets() -> list[Dataset]:
    """Return the built-in data sets."""
    images = [FashionMNIST(), MNIST(), CIFAR10(), CIFAR100(), TinyImageNet()]
    recorded = [NMNIST(), CIFAR10DVS(), CIFAR10DVSOriginal(), NCaltech101(), DVSGesture()]
    return [*images, ImageNet(), Digits(), *(SimulatedSaccades(dataset) for dataset in images), *recorded]
