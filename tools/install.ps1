<#
.SYNOPSIS
    Installs asrserver on Windows 11, in Ubuntu of WSL 2; docs/run/install.md explains it.
.DESCRIPTION
    Run it from the checkout, in a PowerShell of an administrator. It may be repeated. Windows may ask for a restart after
    WSL was installed: repeat the command then.
.PARAMETER Gpu
    Use the NVIDIA GPU. Only the driver of Windows is needed.
.PARAMETER Uninstall
    Remove the server. Its data and WSL stay.
.PARAMETER Distribution
    The Linux to install into.
#>
#Requires -RunAsAdministrator
param(
    [switch]$Gpu,
    [switch]$Uninstall,
    [string]$Distribution = "Ubuntu-24.04"
)
Set-StrictMode -Version Latest
$ErrorActionPreference = "Stop"
$env:WSL_UTF8 = "1"   # otherwise wsl.exe writes UTF-16

function Invoke-Linux([string[]]$Command) {
    & wsl.exe --distribution $Distribution --user root --exec @Command
    if ($LASTEXITCODE -ne 0) { throw "In ${Distribution}: '$Command' ended with $LASTEXITCODE; see above." }
}

function Install-Linux {
    if ((& wsl.exe --list --quiet) -contains $Distribution) { return }
    Write-Host "Installing $Distribution for WSL 2."
    & wsl.exe --install --distribution $Distribution --no-launch
    if ($LASTEXITCODE -ne 0) {
        throw "wsl --install ended with $LASTEXITCODE. If Windows asks for a restart, restart and repeat this command; " +
            "if it says that virtualisation is off, turn it on in the firmware."
    }
    & "$($Distribution.ToLower() -replace '[^a-z0-9]', '').exe" install --root
    if ($LASTEXITCODE -ne 0) { throw "$Distribution could not be set up; start it once from the Start menu, then repeat." }
}

# Services need systemd as the first process, which WSL has since 0.67.6.
function Enable-Systemd {
    Invoke-Linux @("sh", "-c", "grep -qs '^systemd=true' /etc/wsl.conf || printf '[boot]\nsystemd=true\n' >> /etc/wsl.conf")
    & wsl.exe --distribution $Distribution --user root --exec test -d /run/systemd/system
    if ($LASTEXITCODE -eq 0) { return }
    & wsl.exe --terminate $Distribution
    Invoke-Linux @("sh", "-c", "for i in `$(seq 60); do test -d /run/systemd/system && exit; sleep 1; done; exit 1")
}

# Without a process of Windows that holds it, WSL stops a distribution after some seconds, with its services.
function Register-Start {
    $action = New-ScheduledTaskAction -Execute "wsl.exe" -Argument "--distribution $Distribution --exec sleep infinity"
    $trigger = New-ScheduledTaskTrigger -AtLogOn
    $settings = New-ScheduledTaskSettingsSet -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries -ExecutionTimeLimit 0
    Register-ScheduledTask -TaskName "asrserver" -Action $action -Trigger $trigger -Settings $settings -Force | Out-Null
    Start-ScheduledTask -TaskName "asrserver"
}

function Test-Server {
    foreach ($attempt in 1..30) {
        try {
            $answer = Invoke-RestMethod -Uri "http://127.0.0.1:8080/readyz" -TimeoutSec 5
            if ($answer.status -eq "ready") { return }
        } catch {
            Start-Sleep -Seconds 1
        }
    }
    throw "asrserver runs in $Distribution, but http://127.0.0.1:8080/ does not answer: is the port taken in Windows? " +
        "wsl -d $Distribution -u root journalctl -u asrserver tells more."
}

$checkout = Split-Path -Parent $PSScriptRoot
if ($Uninstall) {
    $inside = (& wsl.exe --distribution $Distribution --exec wslpath -a "$checkout").Trim()
    Invoke-Linux @("bash", "$inside/tools/install", "--uninstall")
    Unregister-ScheduledTask -TaskName "asrserver" -Confirm:$false -ErrorAction SilentlyContinue
    return
}
Install-Linux
Enable-Systemd
$inside = (& wsl.exe --distribution $Distribution --exec wslpath -a "$checkout").Trim()
$options = if ($Gpu) { @("--gpu") } else { @("--no-gpu") }
# A checkout of Windows may have CRLF at the ends of lines, which bash does not take.
Invoke-Linux @("sh", "-c", "rm -rf /tmp/asrserver && cp -r '$inside' /tmp/asrserver && find /tmp/asrserver/tools /tmp/asrserver/conf -type f -exec sed -i 's/\r`$//' {} +")
Invoke-Linux (@("bash", "/tmp/asrserver/tools/install") + $options)
Register-Start
Test-Server
Write-Host "asrserver is ready: http://127.0.0.1:8080/"
