"""Pure geometry: windows, blocks, neighbours, colouring, placing sections."""
