"""Client code generated from the protos at run time, as a team in another language would have it."""

import importlib
import pathlib
import sys
import tempfile

import grpc_tools
from grpc_tools import protoc

PROTOS = pathlib.Path(__file__).resolve().parents[2] / "proto"


class Generated:
    """Modules by the proto's path: `generated("router/v1/event_service")` gives messages and stubs."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("wedsync/**/*.proto"))
        well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
        out = self.folder.name
        arguments = [f"-I{PROTOS}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
        if protoc.main(["protoc", *arguments, *files]) != 0:
            raise SystemExit("the protos don't compile")
        sys.path.insert(0, out)
        self.files = [file.removeprefix("wedsync/").removesuffix(".proto") for file in files]

    def messages(self, name):
        return importlib.import_module(f"wedsync.{name.replace('/', '.')}_pb2")

    def stubs(self, name):
        return importlib.import_module(f"wedsync.{name.replace('/', '.')}_pb2_grpc")

    def services(self, package):
        """Full names of a package's services: `services("router")` has wedsync.router.v1.EventService in it."""
        names = []
        for name in self.files:
            if name.startswith(f"{package}/"):
                found = self.messages(name).DESCRIPTOR.services_by_name.values()
                names.extend(service.full_name for service in found)
        return names
