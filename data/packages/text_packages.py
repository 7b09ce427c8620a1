"""The packages from which `python -m data.fetch text` takes texts and code, with their licenses.

Texts are the messages of programs in 16 languages, as their translators wrote them. Code is in 11
languages. Each package is named with the license of the files that are read.
"""

from typing import Literal, NamedTuple

Kind = Literal["code", "messages"]

# Languages by the name of their folder in `locale`; English is the original of every message.
LOCALES = {
    **{name: name for name in ("ar", "cs", "de", "el", "es", "fr", "it", "ja", "ko", "nl")},
    **{name: name for name in ("pl", "ru", "tr", "uk")},
    "pt_BR": "pt",
    "zh_Hans": "zh",
}
ORIGINALS_OF = "fr"  # The locale whose catalogs give the English originals.


class TextFiles(NamedTuple):
    """Files of one language in a package."""

    language: str
    pattern: str  # As fnmatch: * matches any characters, slashes too.
    license: str  # SPDX expression.


class TextPackage(NamedTuple):
    """A package with texts."""

    package: str  # name==version
    sha256: str
    files: tuple[TextFiles, ...]
    message_license: str = ""  # License of its message catalogs; "": they are not read.


TEXT_PACKAGES = (
    TextPackage(
        "django==5.2.8",
        "37e687f7bd73ddf043e2b6b97cfe02fcbb11f2dbb3adccc6a2b18c6daa054d7f",
        (
            TextFiles("javascript", "django/contrib/*.js", "BSD-3-Clause"),
            TextFiles("html", "django/*.html", "BSD-3-Clause"),
            TextFiles("css", "django/*.css", "BSD-3-Clause"),
        ),
        "BSD-3-Clause",
    ),
    TextPackage(
        "wagtail==7.2",
        "2c0d41545976b57266e84df3f03e7dd812e6a4d0a8d61d5b76863fe021613973",
        (TextFiles("html", "wagtail/*.html", "BSD-3-Clause"),),
        "BSD-3-Clause",
    ),
    TextPackage(
        "djangorestframework==3.16.1",
        "33a59f47fb9c85ede792cbf88bde71893bcda0667bc573f784649521f1102cec",
        (TextFiles("html", "rest_framework/*.html", "BSD-3-Clause"),),
        "BSD-3-Clause",
    ),
    TextPackage(
        "sympy==1.14.0",
        "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
        (TextFiles("python", "sympy/*.py", "BSD-3-Clause"),),
    ),
    TextPackage(
        "bokeh==3.8.1",
        "89a66cb8bfe85e91bce144e3ccf3c4a6f0f1347e7006282972568ea0ecacbb00",
        (TextFiles("typescript", "bokeh/*.d.ts", "BSD-3-Clause"),),
    ),
    TextPackage(
        "nvidia-cutlass==4.2.0.0",
        "f9599ada45c7bcb6bf53f7d3f0a7d154183e53451c01bfa59eecd37dd4a693f6",
        (
            TextFiles("cuda", "cutlass_library/source/*.cu", "BSD-3-Clause"),
            TextFiles("cpp", "cutlass_library/source/include/*.hpp", "BSD-3-Clause"),
        ),
    ),
    TextPackage(
        "cmake==4.1.2",
        "7587a2b2ce48df1fd68a68657b6c5a711b467c346812e46dfb9cd996cd6e2352",
        (TextFiles("cmake", "cmake/data/share/*/Modules/*.cmake", "BSD-3-Clause"),),
    ),
    TextPackage(
        "dbt-adapters==1.16.0",
        "54734dcef653d82e93be7b9ab0ad141a4c0d33f04a0435604c4694bb32f29173",
        (TextFiles("sql", "dbt/*.sql", "Apache-2.0"),),
    ),
    TextPackage(
        "ziglang==0.15.1",
        "4e45994a0e608d9b16ecad255698f5557a2e24de0bd7ba9efb156ab3f3683d9a",
        (
            TextFiles("zig", "ziglang/lib/std/*.zig", "MIT"),
            TextFiles("c", "ziglang/lib/libc/musl/src/*.c", "MIT"),
            TextFiles("cpp", "ziglang/lib/libcxx/src/*.cpp", "Apache-2.0 WITH LLVM-exception"),
        ),
    ),
)
