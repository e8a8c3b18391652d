"""What is done to network interfaces in a guest, by its shell: they are found by their hardware address, ``$MAC``."""

from __future__ import annotations


def _on_interface(command: str) -> str:
    """Shell text that runs ``command`` for the interface ``$name``."""
    return f"""
for device in /sys/class/net/*; do
    read -r mac < "$device/address" && [ "$mac" = "$MAC" ] || continue
    name="${{device##*/}}"
    {command} || exit
done
"""


SET_ADDRESS = _on_interface('ip addr add "$ADDRESS" dev "$name" && ip link set "$name" up')
"""Give it the address ``$ADDRESS``, such as 10.0.0.1/24, and let it be up."""
SET_MAC = _on_interface('ip link set "$name" address "$NEW"')
"""Give it another hardware address, ``$NEW``."""
