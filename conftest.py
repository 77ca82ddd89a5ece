"""Every test, those of the notebooks too, starts without a reader's progress and keeps away from the real one."""

import os
import tempfile

os.environ["CAPSULE_HOME"] = tempfile.mkdtemp(prefix="capsule_home_")
