"""buf's STANDARD rules for names and comments, held over the contract's descriptor.

https://buf.build/docs/lint/rules. Two exceptions are meant (see the contract's head): the service's
name has no suffix, and StreamEdit's request and response are not named after it.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

ROOT = Path(__file__).parents[2]
SOURCE = "retouch/v1/image_edit.proto"
PASCAL = re.compile(r"([A-Z][a-z0-9]*)+")
LOWER_SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
UPPER_SNAKE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")

Place = tuple[int, ...]


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorProto:
    out = tmp_path_factory.mktemp("descriptor") / "contract.binpb"
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-I", ROOT / "proto"),
            *("--include_source_info", f"--descriptor_set_out={out}", SOURCE),
        ],
        check=True,
    )
    (contract,) = FileDescriptorSet.FromString(out.read_bytes()).file
    return contract


def messages(
    contract: FileDescriptorProto | DescriptorProto, place: Place = ()
) -> Iterator[tuple[Place, DescriptorProto]]:
    """Every message, nested ones too, with its path in the file's source info."""
    if isinstance(contract, FileDescriptorProto):
        number, found = FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER, contract.message_type
    else:
        number, found = DescriptorProto.NESTED_TYPE_FIELD_NUMBER, contract.nested_type
    for index, message in enumerate(found):
        here = (*place, number, index)
        yield here, message
        yield from messages(message, here)


def enums(contract: FileDescriptorProto) -> Iterator[tuple[Place, EnumDescriptorProto]]:
    for index, enum in enumerate(contract.enum_type):
        yield (FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER, index), enum
    for place, message in messages(contract):
        for index, enum in enumerate(message.enum_type):
            yield (*place, DescriptorProto.ENUM_TYPE_FIELD_NUMBER, index), enum


def test_the_package_is_the_folder_and_has_a_version(contract: FileDescriptorProto) -> None:
    assert contract.syntax == "proto3"
    assert contract.package == ".".join(Path(SOURCE).parent.parts)
    assert re.fullmatch(r"v[1-9]\d*", contract.package.rpartition(".")[2])
    assert LOWER_SNAKE.fullmatch(Path(SOURCE).stem)


def test_messages_and_fields(contract: FileDescriptorProto) -> None:
    for _, message in messages(contract):
        assert PASCAL.fullmatch(message.name), message.name
        for field in message.field:
            name = f"{message.name}.{field.name}"
            assert LOWER_SNAKE.fullmatch(field.name), name
            assert field.label != FieldDescriptorProto.LABEL_REQUIRED, name
        for one in message.oneof_decl:
            # A proto3 `optional` is a oneof of its own: the field's name after an underscore.
            assert LOWER_SNAKE.fullmatch(one.name.removeprefix("_")), one.name


def test_enums(contract: FileDescriptorProto) -> None:
    for _, enum in enums(contract):
        assert PASCAL.fullmatch(enum.name), enum.name
        assert not enum.options.allow_alias, enum.name
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
        assert (enum.value[0].name, enum.value[0].number) == (f"{prefix}_UNSPECIFIED", 0)
        for value in enum.value:
            assert UPPER_SNAKE.fullmatch(value.name), value.name
            assert value.name.startswith(f"{prefix}_"), value.name


def test_services(contract: FileDescriptorProto) -> None:
    assert [service.name for service in contract.service] == ["ImageEdit"]
    types = {}
    for method in contract.service[0].method:
        assert PASCAL.fullmatch(method.name), method.name
        types[method.name] = tuple(
            name.removeprefix(f".{contract.package}.")
            for name in (method.input_type, method.output_type)
        )
    assert types.pop("StreamEdit") == ("EditRequest", "EditEvent")
    for name, both in types.items():
        assert both == (f"{name}Request", f"{name}Response")


def test_everything_is_commented(contract: FileDescriptorProto) -> None:
    commented = {
        tuple(location.path)
        for location in contract.source_code_info.location
        if location.leading_comments.strip()
    }
    named: dict[Place, str] = {}
    for place, message in messages(contract):
        named[place] = message.name
        for index, field in enumerate(message.field):
            at = (*place, DescriptorProto.FIELD_FIELD_NUMBER, index)
            named[at] = f"{message.name}.{field.name}"
        for index, one in enumerate(message.oneof_decl):
            if not one.name.startswith("_"):
                at = (*place, DescriptorProto.ONEOF_DECL_FIELD_NUMBER, index)
                named[at] = f"{message.name}.{one.name}"
    for place, enum in enums(contract):
        named[place] = enum.name
        for index, value in enumerate(enum.value):
            named[(*place, EnumDescriptorProto.VALUE_FIELD_NUMBER, index)] = value.name
    for index, service in enumerate(contract.service):
        place = (FileDescriptorProto.SERVICE_FIELD_NUMBER, index)
        named[place] = service.name
        for position, method in enumerate(service.method):
            named[(*place, 2, position)] = f"{service.name}.{method.name}"
    assert len(named) > 60  # it does look
    assert [name for place, name in named.items() if place not in commented] == []
