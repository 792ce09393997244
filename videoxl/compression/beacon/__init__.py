"""Visual summary tokens ("beacons"): the method of Video-XL."""
