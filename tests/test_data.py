import gzip
import io
import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from trainers import data as data_module
from trainers.batches import evaluation_batches, normalize, training_batches
from trainers.config import DataConfig
from trainers.data import ImageData, check_test_split, load_test, load_train_validation, spread_rows
from trainers.errors import ConfigError, DataError


def png(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def write_parquet(path, pixels, labels, names=("cat", "dog"), extra=None):
    rows = {
        "img": [{"bytes": png(image), "path": None} for image in pixels],
        "label": pa.array(labels, pa.int64()),
        **(extra or {}),
    }
    table = pa.table(rows)
    if names:
        features = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


@pytest.fixture
def colour_images():
    return np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), dtype=np.uint8)


def test_split_is_disjoint_complete_and_fixed_by_its_seed():
    config = DataConfig("digits", validation_fraction=0.25)
    data, again = load_train_validation(config), load_train_validation(config)
    train, validation = set(data.train_rows.tolist()), set(data.validation_rows.tolist())
    assert not train & validation
    assert train | validation == set(range(len(data.labels)))
    assert len(validation) == round(0.25 * len(data.labels))
    assert torch.equal(data.train_rows, again.train_rows)
    other = load_train_validation(DataConfig("digits", validation_fraction=0.25, split_seed=1))
    assert not torch.equal(data.validation_rows, other.validation_rows)


def test_the_test_split_shares_no_image_with_training_and_is_read_by_load_test_alone(monkeypatch):
    asked = []
    reader = data_module.DATASETS["digits"]
    monkeypatch.setitem(data_module.DATASETS, "digits", lambda c, split: (asked.append(split), reader(c, split))[1])
    train = load_train_validation(DataConfig("digits"))
    assert asked == ["train"]
    test = load_test(DataConfig("digits"), train)
    assert asked == ["train", "test"]
    assert (len(train.labels), len(test.labels)) == (1438, 359)
    assert len(test.train_rows) == 0
    assert test.mean == train.mean
    pictures = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in pictures for image in test.images)


def test_statistics_are_those_of_the_training_rows(digits):
    pixels = digits.images[digits.train_rows].double() / 255
    assert digits.mean[0] == pytest.approx(pixels.mean().item(), rel=1e-12)
    assert digits.std[0] == pytest.approx(pixels.std(correction=0).item(), rel=1e-9)
    normal = torch.cat([images for images, _ in training_batches(digits, 50, "none", torch.Generator(), torch.float64)])
    assert abs(normal.mean()) < 0.01


def test_max_train_keeps_a_seeded_subset_and_splits_it():
    data = load_train_validation(DataConfig("digits", max_train=100, validation_fraction=0.2))
    assert (len(data.train_rows), len(data.validation_rows)) == (80, 20)


def test_a_split_without_validation_images_is_an_error():
    with pytest.raises(DataError, match="validation_fraction=0.01 of 10 images"):
        load_train_validation(DataConfig("digits", max_train=10, validation_fraction=0.01))


def test_arrays_share_memory_and_lose_nothing(digits):
    again = ImageData.from_arrays(digits.arrays())
    assert again.images.data_ptr() == digits.images.data_ptr()
    for name in ("labels", "train_rows", "validation_rows"):
        assert torch.equal(getattr(again, name), getattr(digits, name))
    assert (again.mean, again.std, again.class_names) == (digits.mean, digits.std, digits.class_names)


def test_read_only_memory_is_not_written_by_batches(digits):
    arrays = digits.arrays()
    arrays["images"] = arrays["images"].copy()
    arrays["images"].setflags(write=False)
    data, before = ImageData.from_arrays(arrays), arrays["images"].copy()
    for _ in training_batches(data, 64, "crop_flip", torch.Generator(), torch.float32):
        pass
    for _ in evaluation_batches(data, 64, torch.float32):
        pass
    assert np.array_equal(arrays["images"], before)


class TestParquet:
    def test_reads_the_hugging_face_layout(self, tmp_path, colour_images):
        write_parquet(tmp_path / "train.parquet", colour_images, [0, 1] * 5)
        write_parquet(tmp_path / "test.parquet", colour_images[:4], [1, 0, 1, 0])
        config = DataConfig("parquet", root=str(tmp_path), validation_fraction=0.2)
        data = load_train_validation(config)
        assert data.class_names == ("cat", "dog")
        assert torch.equal(data.images, torch.from_numpy(colour_images).permute(0, 3, 1, 2))
        assert data.labels.tolist() == [0, 1] * 5
        assert load_test(config, data).labels.tolist() == [1, 0, 1, 0]

    def test_reads_several_files_in_order_and_grey_images(self, tmp_path, colour_images):
        grey = colour_images[..., 0]
        write_parquet(tmp_path / "data/train-00000-of-00002.parquet", grey[:5], [0, 1, 0, 1, 0], names=())
        write_parquet(tmp_path / "data/train-00001-of-00002.parquet", grey[5:], [2, 2, 2, 2, 2], names=())
        data = load_train_validation(DataConfig("parquet", root=str(tmp_path), validation_fraction=0.2))
        assert data.class_names == ("0", "1", "2")
        assert torch.equal(data.images[:, 0], torch.from_numpy(grey))

    @pytest.mark.parametrize(
        ("labels", "columns", "message"),
        [
            ([0, 5] * 5, {}, "labels must lie in 0..1, but .* has 0..5"),
            ([0, -1] * 5, {}, "drop unlabelled rows"),
            ([0, 1] * 5, {"labels": [1] * 10}, "one integer label column"),
        ],
    )
    def test_labels_that_do_not_fit(self, tmp_path, colour_images, labels, columns, message):
        write_parquet(tmp_path / "train.parquet", colour_images, labels, extra=columns)
        with pytest.raises(DataError, match=message):
            load_train_validation(DataConfig("parquet", root=str(tmp_path)))

    def test_unnamed_classes_may_be_fewer_in_the_test_split_but_named_ones_must_agree(self, tmp_path, colour_images):
        config = DataConfig("parquet", root=str(tmp_path), validation_fraction=0.2)
        write_parquet(tmp_path / "train.parquet", colour_images, [0, 1, 2, 0, 1] * 2, names=())
        write_parquet(tmp_path / "test.parquet", colour_images, [0, 1] * 5, names=())
        check_test_split(config)
        assert load_test(config, load_train_validation(config)).num_classes == 3
        write_parquet(tmp_path / "test.parquet", colour_images, [0, 3] * 5, names=())
        with pytest.raises(DataError, match="other classes"):
            load_test(config, load_train_validation(config))
        write_parquet(tmp_path / "train.parquet", colour_images, [0, 1] * 5, names=("cat", "dog"))
        with pytest.raises(DataError, match=r"must have the classes \['cat', 'dog'\], but has \[\]"):
            check_test_split(config)

    def test_files_that_are_missing_or_damaged(self, tmp_path, colour_images):
        config = DataConfig("parquet", root=str(tmp_path))
        with pytest.raises(DataError, match=r"must hold train.parquet or data/train-\*.parquet"):
            load_train_validation(config)
        (tmp_path / "train.parquet").write_bytes(b"PAR1 nothing")
        with pytest.raises(DataError, match="readable parquet"):
            load_train_validation(config)
        write_parquet(tmp_path / "train.parquet", colour_images, [0, 1] * 5)
        with pytest.raises(DataError, match="test.parquet"):
            check_test_split(config)

    def test_an_image_that_cannot_be_decoded_is_named(self, tmp_path):
        rows = {"img": [{"bytes": b"not an image", "path": None}], "label": [0]}
        pq.write_table(pa.table(rows), tmp_path / "train.parquet")
        with pytest.raises(DataError, match="image number 0 of .* cannot be decoded"):
            load_train_validation(DataConfig("parquet", root=str(tmp_path)))

    def test_sizes_that_differ_need_image_size(self, tmp_path, colour_images):
        pixels = [colour_images[0], colour_images[1][:4]] * 3
        write_parquet(tmp_path / "train.parquet", pixels, [0, 1] * 3)
        with pytest.raises(DataError, match=r"number 1 of .* is 5 x 4 and the first 5 x 6; set data.image_size"):
            load_train_validation(DataConfig("parquet", root=str(tmp_path)))
        config = DataConfig("parquet", root=str(tmp_path), image_size=8, validation_fraction=0.5)
        assert load_train_validation(config).sample_shape == (3, 8, 8)

    def test_grey_and_coloured_images_are_not_mixed(self, tmp_path, colour_images):
        write_parquet(tmp_path / "train.parquet", [colour_images[0][..., 0], colour_images[1]], [0, 1])
        with pytest.raises(DataError, match="all be grey or all coloured"):
            load_train_validation(DataConfig("parquet", root=str(tmp_path)))


class TestImageFolder:
    def write(self, root, split, classes=("bird", "fish")):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(5):
                pixels = np.full((12, 20 - number, 3), 100 * label, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")

    def test_reads_resizes_and_names_classes(self, tmp_path):
        self.write(tmp_path, "train")
        self.write(tmp_path, "test")
        config = DataConfig("imagefolder", root=str(tmp_path), image_size=8, validation_fraction=0.2)
        data = load_train_validation(config)
        assert data.class_names == ("bird", "fish")
        assert data.sample_shape == (3, 8, 8)
        assert torch.equal(data.images[:, 0, 0, 0], 100 * data.labels.to(torch.uint8))
        assert len(load_test(config, data).labels) == 10

    def test_what_is_missing_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match="image_size"):
            DataConfig("imagefolder", root=str(tmp_path))
        config = DataConfig("imagefolder", root=str(tmp_path), image_size=8)
        with pytest.raises(DataError, match="no class folders"):
            load_train_validation(config)
        self.write(tmp_path, "train")
        (tmp_path / "train" / "empty").mkdir()
        with pytest.raises(DataError, match="empty' has none"):
            load_train_validation(config)
        with pytest.raises(DataError, match="test"):
            check_test_split(config)

    def test_other_classes_in_the_test_split_are_an_error(self, tmp_path):
        self.write(tmp_path, "train")
        self.write(tmp_path, "test", ("bird", "mole"))
        config = DataConfig("imagefolder", root=str(tmp_path), image_size=8, validation_fraction=0.2)
        with pytest.raises(DataError, match="other classes"):
            load_test(config, load_train_validation(config))


def write_idx(folder, name, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    (folder / name).write_bytes(header + array.tobytes())


def test_mnist_is_read_from_torchvisions_files(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = (np.arange(20) % 10).astype(np.uint8)
    for prefix in ("train", "t10k"):
        write_idx(folder, f"{prefix}-images-idx3-ubyte", images)
        write_idx(folder, f"{prefix}-labels-idx1-ubyte", labels)
    data = load_train_validation(DataConfig("mnist", root=str(tmp_path), validation_fraction=0.2))
    assert torch.equal(data.images[:, 0], torch.from_numpy(images))
    assert data.labels.tolist() == labels.tolist()
    assert data.num_classes == 10


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_set_that_is_not_there_is_not_downloaded(tmp_path, name):
    with pytest.raises(DataError, match="Set data.download: true"):
        load_train_validation(DataConfig(name, root=str(tmp_path)))
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_damaged_set_is_an_error(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match="MNIST must be readable"):
        load_train_validation(DataConfig("mnist", root=str(tmp_path)))


def augmented(images, augmentation):
    """One epoch's only batch of these images."""
    rows, channels = torch.arange(len(images)), images.shape[1]
    data = ImageData(images, rows, rows, rows[:0], (0.0,) * channels, (1 / 255,) * channels, ("any",))
    generator = torch.Generator().manual_seed(0)
    ((batch, _),) = training_batches(data, len(images), augmentation, generator, torch.float64)
    return batch.to(torch.uint8)


class TestBatches:
    def test_an_epoch_has_every_row_once_but_for_the_last_part(self, digits):
        labels = torch.cat([y for _, y in training_batches(digits, 100, "none", torch.Generator(), torch.float32)])
        assert len(labels) == len(digits.train_rows) // 100 * 100
        seen = [y for _, y in evaluation_batches(digits, 100, torch.float32)]
        assert torch.equal(torch.cat(seen), digits.labels[digits.validation_rows])

    def test_a_set_smaller_than_a_batch_is_one_batch(self, digits):
        batches = list(training_batches(digits, 10**6, "none", torch.Generator(), torch.float32))
        assert [len(labels) for _, labels in batches] == [len(digits.train_rows)]

    def test_the_generator_decides_everything(self, digits):
        def epoch(seed):
            generator = torch.Generator().manual_seed(seed)
            return torch.cat([x for x, _ in training_batches(digits, 64, "crop_flip", generator, torch.float32)])

        assert torch.equal(epoch(1), epoch(1))
        assert not torch.equal(epoch(1), epoch(2))

    def test_normalize_is_the_usual_formula(self, digits):
        images = digits.images[:5]
        expected = (images.double() / 255 - digits.mean[0]) / digits.std[0]
        torch.testing.assert_close(normalize(images, digits, torch.float64), expected, rtol=1e-12, atol=1e-12)

    def test_crop_shifts_by_at_most_an_eighth_and_fills_with_zeros(self):
        images = torch.arange(1, 1 + 2 * 16 * 16, dtype=torch.int32).remainder(255).add(1).to(torch.uint8)
        images = images.reshape(1, 2, 16, 16).repeat(200, 1, 1, 1)
        shifted = augmented(images, "crop")
        padded = torch.nn.functional.pad(images[0], (2, 2, 2, 2))
        windows = {(t, left): padded[:, t : t + 16, left : left + 16] for t in range(5) for left in range(5)}
        found = [[key for key, window in windows.items() if torch.equal(window, image)] for image in shifted]
        assert all(len(keys) == 1 for keys in found)
        assert {keys[0] for keys in found} == windows.keys()

    def test_flip_mirrors_about_half(self):
        images = torch.arange(6, dtype=torch.uint8).reshape(1, 1, 2, 3).repeat(400, 1, 1, 1)
        flipped = augmented(images, "flip")
        mirrored = [torch.equal(image, images[0].flip(2)) for image in flipped]
        assert all(mirrored[i] or torch.equal(flipped[i], images[0]) for i in range(400))
        assert 150 < sum(mirrored) < 250


@pytest.mark.parametrize(
    ("count", "expected"), [(3, [10, 14, 18]), (9, list(range(10, 19))), (99, list(range(10, 19))), (1, [10])]
)
def test_some_rows_are_taken_from_all_over(count, expected):
    assert spread_rows(torch.arange(10, 19), count).tolist() == expected
