"""Register the sample to an MRI with SimpleITK: an example of a command for `processing.sample.hook`.

    [processing.sample.hook]
    name = "mri"
    command = ["python", "/path/to/register_to_mri.py", "{image}", "/path/to/mri.nii.gz", "{output}"]

Contrasts of OCT and MRI differ, so that mutual information is maximised: first over rigid motions, from the centres of
mass, then over affine mappings. The result maps points of the sample to points of the MRI.
"""

from __future__ import annotations

import sys
from pathlib import Path

import SimpleITK as sitk  # noqa: N813


def filled(image: sitk.Image) -> sitk.Image:
    """Return an image whose places without a value are as dark as its darkest ones."""
    known = sitk.Equal(image, image)  # NaN equals nothing
    low = sitk.GetArrayViewFromImage(image)[sitk.GetArrayViewFromImage(known) > 0].min()
    values = sitk.GetArrayFromImage(image)
    values[sitk.GetArrayViewFromImage(known) == 0] = low
    out = sitk.GetImageFromArray(values)
    out.CopyInformation(image)
    return out


def registered(fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
    """Return the affine mapping from points of the fixed to points of the moving image."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.3, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2.0, 1.0, 0.0])
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    rigid = sitk.Euler3DTransform(start)
    method.SetInitialTransform(rigid, inPlace=True)
    method.Execute(fixed, moving)
    affine = sitk.AffineTransform(3)
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    method.SetInitialTransform(affine, inPlace=True)
    method.Execute(fixed, moving)
    return affine


def main(image: str, mri: str, output: str) -> None:
    """Register the image of a sample to an MRI and leave the transform in a folder."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the same result every time
    fixed = filled(sitk.ReadImage(image, sitk.sitkFloat32))
    moving = filled(sitk.ReadImage(mri, sitk.sitkFloat32))
    sitk.WriteTransform(registered(fixed, moving), str(Path(output) / "sample_to_mri.tfm"))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("expected: register_to_mri.py IMAGE MRI OUTPUT")
    main(*sys.argv[1:])
