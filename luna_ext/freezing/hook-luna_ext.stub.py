"""For PyInstaller: the stand-in's shared library, for programs that use it."""

from luna_ext.stub import library_path

binaries = [(library_path(), "luna_ext")]
