"""The device tree, read back with the fdt library and, where it is installed, with the device tree compiler."""

import shutil
import subprocess
from itertools import pairwise

import fdt
import pytest

from polyvisor.boards import memory_map as at
from polyvisor.boards.device_tree import DEFAULT_EXTENSIONS, DeviceTreeError, device_tree, isa_string

COMMAND_LINE = "console=ttyS0 earlycon=sbi root=/dev/vda"


def blob(**changes):
    settings = {
        "memory_size": 256 << 20,
        "harts": 2,
        "command_line": COMMAND_LINE,
        "initrd": (0x8800_0000, 0x8900_0000),
        "rng_seed": bytes(range(32)),
        "extensions": list(DEFAULT_EXTENSIONS),
    }
    return device_tree(**{**settings, **changes})


def tree(**changes):
    return fdt.parse_dtb(blob(**changes))


def u64(node, name):
    data = list(node.get_property(name).data)
    assert len(data) == 2
    return data[0] << 32 | data[1]


def reg(node):
    a, b, c, d = node.get_property("reg").data
    return a << 32 | b, c << 32 | d


def test_header():
    parsed = tree()
    assert parsed.header.version == 17 and parsed.header.last_comp_version == 16
    assert parsed.header.total_size == len(blob())
    assert parsed.root.get_property("compatible").data == ["riscv-virtio"]


def test_memory_and_chosen():
    parsed = tree(memory_size=6 << 30)
    memory = parsed.get_node("memory@80000000")
    assert reg(memory) == (at.DRAM_BASE, 6 << 30)
    chosen = parsed.get_node("chosen")
    assert chosen.get_property("bootargs").value == COMMAND_LINE
    assert parsed.exist_node(chosen.get_property("stdout-path").value)
    assert (u64(chosen, "linux,initrd-start"), u64(chosen, "linux,initrd-end")) == (0x8800_0000, 0x8900_0000)
    words = chosen.get_property("rng-seed").data
    assert b"".join(word.to_bytes(4, "big") for word in words) == bytes(range(32))


def test_initrd_above_4_gib():
    chosen = tree(initrd=(0x1_8000_0000, 0x1_8000_0123)).get_node("chosen")
    assert u64(chosen, "linux,initrd-start") == 0x1_8000_0000
    assert u64(chosen, "linux,initrd-end") == 0x1_8000_0123


def test_what_is_not_there_is_left_out():
    chosen = tree(initrd=None, rng_seed=b"", command_line="").get_node("chosen")
    assert not chosen.exist_property("linux,initrd-start") and not chosen.exist_property("rng-seed")
    assert chosen.exist_property("bootargs")


def test_command_line_is_bytes():
    data = blob(command_line='a="é b"')
    assert 'a="é b"'.encode() + b"\0" in data


@pytest.mark.parametrize("harts", [1, 3, 8])
def test_cpus_and_their_interrupts(harts):
    parsed = tree(harts=harts)
    cpus = parsed.get_node("cpus")
    assert cpus.get_property("timebase-frequency").value == 10_000_000
    assert [node.name for node in cpus.nodes] == [f"cpu@{n:x}" for n in range(harts)]
    intcs = []
    for number, cpu in enumerate(cpus.nodes):
        assert cpu.get_property("reg").value == number
        assert cpu.get_property("mmu-type").value == "riscv,sv57"
        assert cpu.get_property("riscv,isa-base").value == "rv64i"
        assert cpu.get_property("riscv,isa-extensions").data == list(DEFAULT_EXTENSIONS)
        intcs.append(cpu.get_subnode("interrupt-controller").get_property("phandle").value)
    assert len(set(intcs)) == harts
    clint = parsed.get_node("soc/clint@2000000").get_property("interrupts-extended").data
    assert list(clint) == [word for intc in intcs for word in (intc, 3, intc, 7)]
    plic = parsed.get_node("soc/interrupt-controller@c000000")
    assert list(plic.get_property("interrupts-extended").data) == [w for intc in intcs for w in (intc, 11, intc, 9)]
    assert plic.get_property("riscv,ndev").value == 95
    assert plic.get_property("phandle").value not in intcs


def test_devices():
    parsed = tree()
    soc = parsed.get_node("soc")
    plic = parsed.get_node("soc/interrupt-controller@c000000").get_property("phandle").value
    expected = {"rtc@101000": at.RTC, "serial@10000000": at.UART}
    expected |= {f"virtio_mmio@{0x1000_1000 + n * 0x1000:x}": at.VIRTIO[n] for n in range(8)}
    for name, region in expected.items():
        node = soc.get_subnode(name)
        assert reg(node) == (region.base, region.size)
        assert node.get_property("interrupts").value == region.irq
        assert node.get_property("interrupt-parent").value == plic
    test = soc.get_subnode("test@100000").get_property("phandle").value
    for name, value in (("poweroff", 0x5555), ("reboot", 0x7777)):
        node = parsed.get_node(name)
        assert node.get_property("regmap").value == test and node.get_property("value").value == value


def test_pci_host_bridge():
    assert not tree().exist_node("soc/pci@30000000")
    parsed = tree(pci=True, virtio_slots=0)
    pci = parsed.get_node("soc/pci@30000000")
    assert pci.get_property("compatible").value == "pci-host-ecam-generic"
    assert reg(pci) == (0x3000_0000, 0x1000_0000)
    assert list(pci.get_property("bus-range").data) == [0, 255]
    ranges = list(pci.get_property("ranges").data)
    assert ranges[:7] == [0x0100_0000, 0, 0, 0, 0x300_0000, 0, 0x1_0000]
    assert ranges[7:] == [0x0200_0000, 0, 0x4000_0000, 0, 0x4000_0000, 0, 0x4000_0000]
    plic = parsed.get_node("soc/interrupt-controller@c000000").get_property("phandle").value
    assert list(pci.get_property("interrupt-map-mask").data) == [0x1800, 0, 0, 7]
    lines = list(pci.get_property("interrupt-map").data)
    for i in range(16):
        device, pin = divmod(i, 4)
        assert lines[6 * i : 6 * i + 6] == [device << 11, 0, 0, pin + 1, plic, 32 + (device + pin) % 4]
    assert len(lines) == 16 * 6
    assert not any(node.name.startswith("virtio") for node in parsed.get_node("soc").nodes)


def test_isa_string():
    assert isa_string(DEFAULT_EXTENSIONS) == ("rv64imafdc_zicntr_zicsr_zifencei_zihpm_zba_zbb_zbs_sstc_svadu_svinval")


def test_regions_do_not_overlap():
    regions = [at.MROM, at.TEST, at.RTC, at.CLINT, at.PLIC, at.UART, *at.VIRTIO]
    regions += [at.PCI_IO, at.PCI_CONFIG, at.PCI_MEMORY]
    regions.sort(key=lambda r: r.base)
    for low, high in pairwise(regions):
        assert low.base + low.size <= high.base
    assert regions[-1].base + regions[-1].size <= at.DRAM_BASE
    irqs = [region.irq for region in regions if region.irq] + list(at.PCI_IRQS)
    assert len(set(irqs)) == len(irqs) and max(irqs) < at.PLIC_SOURCES


@pytest.mark.parametrize(
    "changes",
    [
        {"harts": 0},
        {"harts": 1 << 20},
        {"memory_size": 0},
        {"memory_size": 1 << 64},
        {"command_line": "a\0b"},
        {"initrd": (8, 4)},
        {"initrd": (-1, 4)},
        {"extensions": []},
        {"extensions": ["m", "i"]},
        {"extensions": ["i", "Zba"]},
        {"extensions": ["i", ""]},
        {"mmu": "sv57"},
    ],
)
def test_refusals(changes):
    with pytest.raises(DeviceTreeError) as caught:
        blob(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(shutil.which("dtc") is None, reason="the device tree compiler is not installed")
@pytest.mark.parametrize("changes", [{}, {"harts": 17, "initrd": None}, {"command_line": ""}, {"pci": True}])
def test_compiler_accepts_it(changes):
    ran = subprocess.run(
        ["dtc", "-I", "dtb", "-O", "dts"], input=blob(**changes), capture_output=True, check=True, timeout=30
    )
    complaints = [line for line in ran.stderr.decode().splitlines() if "Missing #address-cells" not in line]
    assert not complaints
    assert b'compatible = "riscv-virtio"' in ran.stdout
