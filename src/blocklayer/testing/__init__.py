# SPDX-License-Identifier: Apache-2.0
"""What tests of drivers need: shipped, so that users can test their own.

model       ModelDisk: a disk as a byte array, to compare with
exercise    random requests against a disk and its model
recorder    Recorder: a filter that notes the requests that reach it
liar        Liar: a filter that keeps its contract, and nothing more
crash       CrashDisk: storage that records what a driver does to it
            _states: all that a crash may leave of it; _guest: who remembers what was promised
            _explore: recover from every crash, and compare
"""
