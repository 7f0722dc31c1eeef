"""The phantom and the virtual rig: a microscope with known truth.

`phantom` is the tissue, `optics` its appearance to a beam, `instrument` the spectrometer, `scan_stage` the stage,
`tiles` one raw tile, `rig` a whole acquisition on the disk, `truth` what is stored beside it, `validate` compares.
Runtime code never imports this package, and it imports none of the reconstruction that it is there to judge.
"""
