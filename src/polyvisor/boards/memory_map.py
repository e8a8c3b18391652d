"""Where everything is on the `virt` board: addresses, sizes in bytes, interrupt numbers at the PLIC."""

MROM, MROM_SIZE = 0x1000, 0xF000
TEST, TEST_SIZE = 0x10_0000, 0x1000
RTC, RTC_SIZE, RTC_IRQ = 0x10_1000, 0x1000, 11
ACLINT, ACLINT_SIZE = 0x200_0000, 0x1_0000
PLIC, PLIC_SIZE = 0xC00_0000, 0x60_0000
PLIC_SOURCES = 96  # source 0 included, which is none
UART, UART_SIZE, UART_IRQ = 0x1000_0000, 0x100, 10
UART_CLOCK = 3_686_400  # Hz
VIRTIO, VIRTIO_STRIDE, VIRTIO_SIZE = 0x1000_1000, 0x1000, 0x1000
VIRTIO_SLOTS, VIRTIO_IRQ = 8, 1
DRAM = 0x8000_0000
KERNEL_OFFSET = 0x20_0000  # a kernel starts on a 2 MiB boundary, above the firmware
TIMEBASE = 10_000_000  # Hz
