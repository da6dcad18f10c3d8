"""What a system installs by its own means: a Debian package with a systemd unit, and a container image."""

from sparsec.runtime import build

from . import debian, oci, programs, texts
from .folder import headers
from .publish import File, with_sums
from .source import Source


def system_folder(source: Source) -> dict[str, File]:
    """The package, the unit and the image of ``source``, by path."""
    made = programs.runtime(source.device.architecture)
    program, _ = programs.linked(source)
    unit = texts.plain("model.service", NAME=source.name)
    installed = {
        f"usr/lib/sparsec/{source.name}/model.sparsec": File(source.artifact),
        f"usr/lib/sparsec/{source.name}/bin/sparsec-device": File(made["sparsec-device"], program=True),
        f"usr/lib/sparsec/{source.name}/selftest": texts.script("selftest-artifact.sh"),
        f"usr/lib/sparsec/{source.name}/lib/libsparsec.a": File(made["libsparsec.a"]),
        **{f"usr/lib/sparsec/{source.name}/{path}": file for path, file in headers().items()},
        f"usr/lib/systemd/system/sparsec-{source.name}.service": unit,
        f"usr/share/doc/sparsec-{source.name}/copyright": texts.plain("copyright"),
    }
    glibc = build.ZIG_TARGETS[source.device.architecture].partition(".")[
        2
    ]  # the oldest that programs load on
    name, package = debian.package(source, installed, f"libc6 (>= {glibc})")
    image = oci.image(source, {source.name: File(program, program=True)}, [f"/{source.name}"])
    return with_sums(
        {name: File(package), f"{source.name}.oci.tar": File(image), f"sparsec-{source.name}.service": unit}
    )
